// The gradient of a depthwise convolution with respect to its kernel, float32. Images are NHWC.
//
// oneDNN needs about three times as long. Each image is summed by itself, row by row, with the sums of one row of the
// kernel in registers. The images' sums are then added in order, so the result does not depend on the threads.

#include <cstdint>
#include <cstring>
#include <vector>

#include "guarded.h"
#include "vectors.h"

namespace {

struct Shape {
  int64_t batch, height, width, channels, rows, columns, side, stride, top, left;
};

// Adds one row of windows to `sums`, the gradient of one row of the kernel, for channels from `channel` on.
template <int SIDE>
void add_row(const Shape& shape, const float* pixels, const float* gradient, int64_t channel, float* sums) {
  const int64_t channels = shape.channels;
  Vector totals[SIDE];
  for (int v = 0; v < SIDE; ++v) totals[v] = load(sums + v * channels + channel);
  for (int64_t j = 0; j < shape.columns; ++j) {
    const Vector factor = load(gradient + j * channels + channel);
    const int64_t first = j * shape.stride - shape.left;
    const float* const window = pixels + first * channels + channel;
    if (first >= 0 && first + SIDE <= shape.width) {
      for (int v = 0; v < SIDE; ++v) totals[v] += load(window + v * channels) * factor;
    } else {
      for (int v = 0; v < SIDE; ++v)
        if (first + v >= 0 && first + v < shape.width) totals[v] += load(window + v * channels) * factor;
    }
  }
  for (int v = 0; v < SIDE; ++v) store(sums + v * channels + channel, totals[v]);
}

// As `add_row`, for any kernel and the channels that fill no vector.
void add_rest(const Shape& shape, const float* pixels, const float* gradient, int64_t first_channel, float* sums) {
  for (int64_t j = 0; j < shape.columns; ++j)
    for (int64_t v = 0; v < shape.side; ++v) {
      const int64_t column = j * shape.stride - shape.left + v;
      if (column < 0 || column >= shape.width) continue;
      for (int64_t c = first_channel; c < shape.channels; ++c)
        sums[v * shape.channels + c] += pixels[column * shape.channels + c] * gradient[j * shape.channels + c];
    }
}

void add_image(const Shape& shape, const float* image, const float* gradient, float* sums) {
  const bool unrolled = shape.side == 3 || shape.side == 5;
  const int64_t whole = unrolled ? shape.channels / LANES * LANES : 0;
  for (int64_t i = 0; i < shape.rows; ++i)
    for (int64_t u = 0; u < shape.side; ++u) {
      const int64_t row = i * shape.stride - shape.top + u;
      if (row < 0 || row >= shape.height) continue;
      const float* const pixels = image + row * shape.width * shape.channels;
      const float* const gradients = gradient + i * shape.columns * shape.channels;
      float* const totals = sums + u * shape.side * shape.channels;
      for (int64_t c = 0; c < whole; c += LANES)
        shape.side == 3 ? add_row<3>(shape, pixels, gradients, c, totals)
                        : add_row<5>(shape, pixels, gradients, c, totals);
      if (whole < shape.channels) add_rest(shape, pixels, gradients, whole, totals);
    }
}

ffi::Error gradient(ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> gradient,
                    ffi::Result<ffi::Buffer<ffi::F32>> kernel, int64_t stride, int64_t top, int64_t left) {
  return guarded([&] {
    const auto x = images.dimensions(), y = gradient.dimensions();
    const Shape shape{x[0], x[1], x[2], x[3], y[1], y[2], kernel->dimensions()[0], stride, top, left};
    const int64_t size = shape.side * shape.side * shape.channels;
    std::vector<float> sums(shape.batch * size);
#pragma omp parallel for
    for (int64_t n = 0; n < shape.batch; ++n)
      add_image(shape, images.typed_data() + n * shape.height * shape.width * shape.channels,
                gradient.typed_data() + n * shape.rows * shape.columns * shape.channels, sums.data() + n * size);
    float* const total = kernel->typed_data();
    std::memset(total, 0, size * sizeof(float));
    for (int64_t n = 0; n < shape.batch; ++n)
      for (int64_t k = 0; k < size; ++k) total[k] += sums[n * size + k];
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(gradient_of_depthwise_kernel, gradient,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left"));
