// Convolutions one after the other, each image by one thread: its activations then stay in the cache of a core.
//
// Layer by layer, the activations of a whole batch would go to memory and back. Images are NHWC.

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <vector>

#include "fingerprint.h"
#include "guarded.h"
#include "primitives.h"

namespace {

using namespace primitives;

struct Layer {
  const Primitive* primitive;
  Bytes kernel;
  void* bias;
};

struct Layers {
  std::vector<Layer> all;
  size_t activations = 0, scratchpad = 0;  // bytes, of the layer that needs most
};

constexpr int64_t NUMBERS = 6;  // of a layer in `geometry`

int64_t windows(int64_t size, int64_t before, int64_t after, int64_t side, int64_t stride) {
  return (size + before + after - side) / stride + 1;
}

// Finds the primitives that compute one image.
Layers prepare(ffi::AnyBuffer images, ffi::RemainingArgs weights, ffi::Span<const int64_t> geometry,
               ffi::Span<const float> limits, bool adds_images) {
  const int type = images.element_type() == ffi::BF16 ? dnnl::BFLOAT16 : dnnl::FLOAT32;
  const auto shape = images.dimensions();
  Sizes from = {1, shape[1], shape[2], shape[3]};
  Layers layers;
  for (size_t index = 0; index < limits.size() / 2; ++index) {
    const int64_t* const numbers = geometry.begin() + NUMBERS * index;
    const Geometry own{numbers[0] != 0, numbers[1], numbers[2],        numbers[3],
                       numbers[4],      numbers[5], limits[2 * index], limits[2 * index + 1]};
    const auto kernel = weights.get<ffi::AnyBuffer>(3 * index).value();
    const auto bias = weights.get<ffi::AnyBuffer>(3 * index + 1).value();
    const auto fingerprint = weights.get<ffi::Buffer<ffi::U32>>(3 * index + 2).value();
    const Sizes sides(kernel.dimensions().begin(), kernel.dimensions().end());
    const int64_t side = own.depthwise ? sides[0] : sides[1], outputs = own.depthwise ? sides[3] : sides[0];
    const Sizes to = {1, windows(from[1], own.top, own.bottom, side, own.stride),
                      windows(from[2], own.left, own.right, side, own.stride), outputs};
    const bool is_last = index + 1 == limits.size() / 2;
    const Primitive& found = primitive({FORWARD, type, true, adds_images && is_last, true, from, sides, to, own});
    const Bytes own_kernel = reordered(found, kernel.untyped_data(), read_fingerprint(fingerprint));
    layers.all.push_back({&found, own_kernel, bias.untyped_data()});
    const size_t bytes = ffi::ByteWidth(images.element_type()) * to[1] * to[2] * to[3];
    layers.activations = std::max(layers.activations, (bytes + 63) / 64 * 64);
    layers.scratchpad = std::max(layers.scratchpad, scratchpad_bytes(found));
    from = to;
  }
  return layers;
}

// What a thread needs to compute images.
class Worker {
 public:
  explicit Worker(const Layers& layers) : layers_(layers), memory_(allocate(2 * layers.activations + layers.scratchpad)) {
    for (const Layer& layer : layers.all) executions_.emplace_back(*layer.primitive);
  }

  void operator()(std::byte* image, std::byte* result) const {
    std::byte *const own = static_cast<std::byte*>(memory_.get()), *from = image;
    for (size_t index = 0; index < executions_.size(); ++index) {
      const Layer& layer = layers_.all[index];
      std::byte* const to = index + 1 == executions_.size() ? result : own + index % 2 * layers_.activations;
      executions_[index](from, layer.kernel.get(), layer.bias, image, to, own + 2 * layers_.activations);
      from = to;
    }
  }

 private:
  const Layers& layers_;
  Bytes memory_;  // two activations, which take turns, and a scratchpad
  std::vector<Execution> executions_;
};

// `weights` are a kernel, a bias and a fingerprint for each layer, `geometry` has `NUMBERS` for each, `limits` two. The
// last layer may add the images to its result.
ffi::Error convolve(ffi::AnyBuffer images, ffi::RemainingArgs weights, ffi::Result<ffi::AnyBuffer> results,
                    ffi::Span<const int64_t> geometry, ffi::Span<const float> limits, bool adds_images) {
  return guarded([&] {
    const Layers layers = prepare(images, weights, geometry, limits, adds_images);
    std::vector<Worker> workers;
    for (int thread = 0; thread < omp_get_max_threads(); ++thread) workers.emplace_back(layers);
    const int64_t count = images.dimensions()[0];
    const auto part = [&](ffi::AnyBuffer& of, int64_t n) {
      return static_cast<std::byte*>(of.untyped_data()) + n * (of.size_bytes() / count);
    };
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic)
    for (int64_t n = 0; n < count; ++n) {
      try {
        workers[omp_get_thread_num()](part(images, n), part(*results, n));
      } catch (...) {
#pragma omp critical
        failure = std::current_exception();
      }
    }
    if (failure) std::rethrow_exception(failure);
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(convolutions_image_by_image, convolve,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<ffi::Span<const int64_t>>("geometry")
                                  .Attr<ffi::Span<const float>>("limits")
                                  .Attr<bool>("adds_images"));
