// Sums over images and pixels for BatchNorm, float32. Images are NHWC.
//
// Blocks of pixels are summed in float32 and then added in order in float64. The blocks do not depend on the number of
// threads, so neither does the result.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "guarded.h"

namespace {

using Array = ffi::Buffer<ffi::F32>;

constexpr int64_t BLOCK = 512;  // pixels

// Calls `add(pixel, first, second)` for each pixel. It adds to two sums per channel.
template <typename Add>
void sum(int64_t pixels, int64_t channels, float* first, float* second, const Add& add) {
  const int64_t blocks = (pixels + BLOCK - 1) / BLOCK;
  std::vector<float> sums(2 * blocks * channels);
#pragma omp parallel for
  for (int64_t block = 0; block < blocks; ++block) {
    float* const own = sums.data() + 2 * block * channels;
    for (int64_t pixel = block * BLOCK; pixel < std::min(pixels, (block + 1) * BLOCK); ++pixel)
      add(pixel, own, own + channels);
  }
  std::vector<double> totals(2 * channels);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t k = 0; k < 2 * channels; ++k) totals[k] += sums[2 * block * channels + k];
  std::copy(totals.begin(), totals.begin() + channels, first);
  std::copy(totals.begin() + channels, totals.end(), second);
}

// Sums of x − centre, and of its squares.
ffi::Error distances(Array x, Array centre, ffi::Result<Array> sums, ffi::Result<Array> squares) {
  return guarded([&] {
    const int64_t channels = centre.element_count();
    const float *const values = x.typed_data(), *const centres = centre.typed_data();
    sum(x.element_count() / channels, channels, sums->typed_data(), squares->typed_data(),
        [=](int64_t pixel, float* __restrict first, float* __restrict second) {
          const float* const row = values + pixel * channels;
          for (int64_t c = 0; c < channels; ++c) {
            const float distance = row[c] - centres[c];
            first[c] += distance;
            second[c] += distance * distance;
          }
        });
  });
}

// Sums of the gradient where low < factor · x + offset < high, and of its products with x − centre.
ffi::Error gradients(Array x, Array gradient, Array centre, Array factor, Array offset, ffi::Result<Array> sums,
                     ffi::Result<Array> products, float low, float high) {
  return guarded([&] {
    const int64_t channels = centre.element_count();
    const float *const values = x.typed_data(), *const slopes = gradient.typed_data(),
                       *const centres = centre.typed_data();
    const float *const factors = factor.typed_data(), *const offsets = offset.typed_data();
    sum(x.element_count() / channels, channels, sums->typed_data(), products->typed_data(),
        [=](int64_t pixel, float* __restrict first, float* __restrict second) {
          const float *const row = values + pixel * channels, *const slope = slopes + pixel * channels;
          for (int64_t c = 0; c < channels; ++c) {
            const float y = row[c] * factors[c] + offsets[c];
            const float passed = (y > low) & (y < high) ? slope[c] : 0.0f;
            first[c] += passed;
            second[c] += passed * (row[c] - centres[c]);
          }
        });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(sums_of_distances, distances,
                              ffi::Ffi::Bind().Arg<Array>().Arg<Array>().Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(sums_of_gradients, gradients,
                              ffi::Ffi::Bind()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<float>("low")
                                  .Attr<float>("high"));
