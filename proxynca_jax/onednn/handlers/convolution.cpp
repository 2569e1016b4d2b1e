// Convolutions by oneDNN as handlers of XLA's foreign function interface, and their gradients.

#include <stdexcept>

#include "fingerprint.h"
#include "guarded.h"
#include "primitives.h"

namespace {

using namespace primitives;

template <typename Buffer>
Sizes sizes(const Buffer& buffer) {
  const auto dimensions = buffer.dimensions();
  return Sizes(dimensions.begin(), dimensions.end());
}

void* data(ffi::AnyBuffer buffer) { return buffer.element_count() ? buffer.untyped_data() : nullptr; }

// Runs a convolution or a gradient of it. `bias` and `addend` are null if there is none.
ffi::Error convolve(Kind kind, ffi::AnyBuffer images, ffi::AnyBuffer kernel, void* bias, void* addend,
                    ffi::AnyBuffer result, const Geometry& geometry,
                    const std::optional<Fingerprint>& fingerprint = {}) {
  return guarded([&] {
    if (images.element_type() != result.element_type() || images.element_type() != kernel.element_type())
      throw std::runtime_error("a convolution of arrays of different types");
    const int type = images.element_type() == ffi::BF16 ? dnnl::BFLOAT16 : dnnl::FLOAT32;
    const Task task{kind,          type,          bias != nullptr, addend != nullptr, false,
                    sizes(images), sizes(kernel), sizes(result),   geometry};
    run(task, images.untyped_data(), kernel.untyped_data(), bias, addend, result.untyped_data(), fingerprint);
  });
}

// `bias`, `addend` and `fingerprint` have no element if there is none.
ffi::Error forward(ffi::AnyBuffer images, ffi::AnyBuffer kernel, ffi::AnyBuffer bias, ffi::AnyBuffer addend,
                   ffi::Buffer<ffi::U32> fingerprint, ffi::Result<ffi::AnyBuffer> result, bool depthwise,
                   int64_t stride, int64_t top, int64_t bottom, int64_t left, int64_t right, float low, float high) {
  return convolve(FORWARD, images, kernel, data(bias), data(addend), *result,
                  {depthwise, stride, top, bottom, left, right, low, high}, read_fingerprint(fingerprint));
}

ffi::Error of_images(ffi::AnyBuffer gradient, ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> images, bool depthwise,
                     int64_t stride, int64_t top, int64_t bottom, int64_t left, int64_t right) {
  return convolve(OF_IMAGES, *images, kernel, nullptr, nullptr, gradient, {depthwise, stride, top, bottom, left, right});
}

ffi::Error of_kernel(ffi::AnyBuffer images, ffi::AnyBuffer gradient, ffi::Result<ffi::AnyBuffer> kernel, bool depthwise,
                     int64_t stride, int64_t top, int64_t bottom, int64_t left, int64_t right) {
  return convolve(OF_KERNEL, images, *kernel, nullptr, nullptr, gradient, {depthwise, stride, top, bottom, left, right});
}

auto with_geometry(auto binding) {
  return std::move(binding)
      .template Attr<bool>("depthwise")
      .template Attr<int64_t>("stride")
      .template Attr<int64_t>("top")
      .template Attr<int64_t>("bottom")
      .template Attr<int64_t>("left")
      .template Attr<int64_t>("right");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    convolution, forward,
    with_geometry(ffi::Ffi::Bind()
                      .Arg<ffi::AnyBuffer>()
                      .Arg<ffi::AnyBuffer>()
                      .Arg<ffi::AnyBuffer>()
                      .Arg<ffi::AnyBuffer>()
                      .Arg<ffi::Buffer<ffi::U32>>()
                      .Ret<ffi::AnyBuffer>())
        .Attr<float>("low")
        .Attr<float>("high"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    gradient_of_images, of_images,
    with_geometry(ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    gradient_of_kernel, of_kernel,
    with_geometry(ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()));
