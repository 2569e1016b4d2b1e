// 3×3 pools, float32. Images are NHWC. Loops over channels are innermost, so the compiler makes vectors of them.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "guarded.h"

namespace {

constexpr float LOWEST = -std::numeric_limits<float>::infinity();

struct Window {
  int64_t first_row, last_row, first_column, last_column;  // of the image, the last ones not included
};

// Pixels of the image in the window of output pixel (i, j). Padding is one pixel with stride 1, none with stride 2.
Window window(int64_t i, int64_t j, int64_t stride, int64_t height, int64_t width) {
  const int64_t row = i * stride - (stride == 1), column = j * stride - (stride == 1);
  return {std::max<int64_t>(row, 0), std::min(row + 3, height), std::max<int64_t>(column, 0), std::min(column + 3, width)};
}

// Takes `value` if it is larger or not a number, as PyTorch does. The first of equal values stays.
bool replaces(float value, float maximum) { return (value > maximum) | (value != value); }

ffi::Error maximum(ffi::Buffer<ffi::F32> images, ffi::Result<ffi::Buffer<ffi::F32>> maxima, int64_t stride) {
  return guarded([&] {
    const auto x = images.dimensions(), y = maxima->dimensions();
    const int64_t height = x[1], width = x[2], channels = x[3], rows = y[1], columns = y[2];
#pragma omp parallel for
    for (int64_t line = 0; line < x[0] * rows; ++line)
      for (int64_t j = 0; j < columns; ++j) {
        const float* const image = images.typed_data() + line / rows * height * width * channels;
        float* __restrict const best = maxima->typed_data() + (line * columns + j) * channels;
        const Window at = window(line % rows, j, stride, height, width);
        std::fill(best, best + channels, LOWEST);
        for (int64_t row = at.first_row; row < at.last_row; ++row)
          for (int64_t column = at.first_column; column < at.last_column; ++column) {
            const float* const pixel = image + (row * width + column) * channels;
            for (int64_t c = 0; c < channels; ++c) best[c] = replaces(pixel[c], best[c]) ? pixel[c] : best[c];
          }
      }
  });
}

// Adds the gradient of one window to the pixel that is its maximum. `best` and `place` are scratch memory.
void scatter(const float* image, const float* gradient, float* __restrict result, const Window& at, int64_t width,
             int64_t channels, float* __restrict best, int32_t* __restrict place) {
  std::fill(best, best + channels, LOWEST);
  std::fill(place, place + channels, 0);
  int32_t number = 0;
  for (int64_t row = at.first_row; row < at.last_row; ++row)
    for (int64_t column = at.first_column; column < at.last_column; ++column, ++number) {
      const float* const pixel = image + (row * width + column) * channels;
      for (int64_t c = 0; c < channels; ++c) {
        const bool taken = replaces(pixel[c], best[c]);
        best[c] = taken ? pixel[c] : best[c];
        place[c] = taken ? number : place[c];
      }
    }
  number = 0;
  for (int64_t row = at.first_row; row < at.last_row; ++row)
    for (int64_t column = at.first_column; column < at.last_column; ++column, ++number) {
      float* const pixel = result + (row * width + column) * channels;
      for (int64_t c = 0; c < channels; ++c) pixel[c] += place[c] == number ? gradient[c] : 0.0f;
    }
}

ffi::Error of_maximum(ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> gradient, ffi::Result<ffi::Buffer<ffi::F32>> result,
                      int64_t stride) {
  return guarded([&] {
    const auto x = images.dimensions(), y = gradient.dimensions();
    const int64_t height = x[1], width = x[2], channels = x[3], rows = y[1], columns = y[2];
    const int64_t size = height * width * channels;
    std::vector<float> best(x[0] * channels);
    std::vector<int32_t> place(x[0] * channels);
#pragma omp parallel for
    for (int64_t n = 0; n < x[0]; ++n) {
      float* const sums = result->typed_data() + n * size;
      std::memset(sums, 0, size * sizeof(float));
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j)
          scatter(images.typed_data() + n * size, gradient.typed_data() + ((n * rows + i) * columns + j) * channels, sums,
                  window(i, j, stride, height, width), width, channels, best.data() + n * channels,
                  place.data() + n * channels);
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
