// 3×3 pools, float32. Images are NHWC.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "guarded.h"
#include "vectors.h"

namespace {

constexpr float LOWEST = -std::numeric_limits<float>::infinity();

struct Window {
  int64_t first_row, last_row, first_column, last_column;  // of the image, the last ones not included
};

// Pixels of the image in the window of output pixel (i, j). Padding is one pixel with stride 1, none with stride 2.
Window window(int64_t i, int64_t j, int64_t stride, int64_t height, int64_t width) {
  const int64_t row = i * stride - (stride == 1), column = j * stride - (stride == 1);
  return {std::max<int64_t>(row, 0), std::min(row + 3, height), std::max<int64_t>(column, 0),
          std::min(column + 3, width)};
}

// Where `values` are larger than `maxima` or not numbers, as PyTorch does. So the first of equal values stays.
Integers replaces(const Vector& values, const Vector& maxima) { return (values > maxima) | (values != values); }

// Calls `work(c, count)` for channels in groups of `LANES`. The last group may have fewer.
template <typename Work>
void by_lanes(int64_t channels, const Work& work) {
  int64_t c = 0;
  for (; c + LANES <= channels; c += LANES) work(c, std::integral_constant<int64_t, LANES>());
  if (c < channels) work(c, channels - c);
}

ffi::Error maximum(ffi::Buffer<ffi::F32> images, ffi::Result<ffi::Buffer<ffi::F32>> maxima, int64_t stride) {
  return guarded([&] {
    const auto x = images.dimensions(), y = maxima->dimensions();
    const int64_t height = x[1], width = x[2], channels = x[3], rows = y[1], columns = y[2];
#pragma omp parallel for
    for (int64_t line = 0; line < x[0] * rows; ++line)
      for (int64_t j = 0; j < columns; ++j) {
        const float* const image = images.typed_data() + line / rows * height * width * channels;
        float* const result = maxima->typed_data() + (line * columns + j) * channels;
        const Window at = window(line % rows, j, stride, height, width);
        by_lanes(channels, [&](int64_t c, auto count) {
          Vector best = Vector{} + LOWEST;
          for (int64_t row = at.first_row; row < at.last_row; ++row)
            for (int64_t column = at.first_column; column < at.last_column; ++column) {
              const Vector pixel = load_some(image + (row * width + column) * channels + c, count);
              best = replaces(pixel, best) ? pixel : best;
            }
          store_some(result + c, best, count);
        });
      }
  });
}

// Adds the gradient of one window to the pixels that are its maxima, for channels from `c` on.
template <typename Count>
void scatter(const float* image, const float* gradient, float* result, const Window& at, int64_t width,
             int64_t channels, int64_t c, Count count) {
  Vector best = Vector{} + LOWEST;
  Integers place = {}, number = {};
  for (int64_t row = at.first_row; row < at.last_row; ++row)
    for (int64_t column = at.first_column; column < at.last_column; ++column, ++number) {
      const Vector pixel = load_some(image + (row * width + column) * channels + c, count);
      const Integers taken = replaces(pixel, best);
      best = taken ? pixel : best;
      place = taken ? number : place;
    }
  const Vector share = load_some(gradient + c, count);
  number = Integers{};
  for (int64_t row = at.first_row; row < at.last_row; ++row)
    for (int64_t column = at.first_column; column < at.last_column; ++column, ++number) {
      float* const pixel = result + (row * width + column) * channels + c;
      store_some(pixel, load_some(pixel, count) + (place == number ? share : Vector{}), count);
    }
}

ffi::Error of_maximum(ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> gradient,
                      ffi::Result<ffi::Buffer<ffi::F32>> result, int64_t stride) {
  return guarded([&] {
    const auto x = images.dimensions(), y = gradient.dimensions();
    const int64_t height = x[1], width = x[2], channels = x[3], rows = y[1], columns = y[2];
    const int64_t size = height * width * channels;
#pragma omp parallel for
    for (int64_t n = 0; n < x[0]; ++n) {
      float* const sums = result->typed_data() + n * size;
      std::memset(sums, 0, size * sizeof(float));
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
          const Window at = window(i, j, stride, height, width);
          const float* const slope = gradient.typed_data() + ((n * rows + i) * columns + j) * channels;
          by_lanes(channels, [&](int64_t c, auto count) {
            scatter(images.typed_data() + n * size, slope, sums, at, width, channels, c, count);
          });
        }
    }
  });
}

// The sum over rows is computed first, in `sums`: one value for each column and channel.
ffi::Error average(ffi::Buffer<ffi::F32> images, ffi::Result<ffi::Buffer<ffi::F32>> means) {
  return guarded([&] {
    const auto x = images.dimensions();
    const int64_t height = x[1], width = x[2], channels = x[3], line_size = width * channels;
    std::vector<float> scratch(x[0] * line_size);
#pragma omp parallel for
    for (int64_t n = 0; n < x[0]; ++n)
      for (int64_t i = 0; i < height; ++i) {
        const float* const line = images.typed_data() + (n * height + i) * line_size;
        float* __restrict const sums = scratch.data() + n * line_size;
        float* __restrict const result = means->typed_data() + (n * height + i) * line_size;
        const float* const above = i > 0 ? line - line_size : nullptr;
        const float* const below = i + 1 < height ? line + line_size : nullptr;
        for (int64_t k = 0; k < line_size; ++k)
          sums[k] = (above ? above[k] : 0.0f) + line[k] + (below ? below[k] : 0.0f);
        for (int64_t k = 0; k < line_size; ++k) {
          const float before = k >= channels ? sums[k - channels] : 0.0f;
          const float after = k + channels < line_size ? sums[k + channels] : 0.0f;
          result[k] = (before + sums[k] + after) / 9.0f;
        }
      }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    max_pool, maximum,
    ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>().Attr<int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(gradient_of_max_pool, of_maximum,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(average_pool, average,
                              ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
