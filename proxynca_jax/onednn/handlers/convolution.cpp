// Convolutions by oneDNN as handlers of XLA's foreign function interface. Images are NHWC. Kernels are OHWI, those of
// depthwise convolutions HWIO with I = 1.
//
// oneDNN chooses the layout of the kernels, so a call first reorders them. A primitive is made once for each shape and
// kept for ever. Primitives and reorders are safe to execute from several threads, because the scratchpad is the
// caller's.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "dnnl.h"
#include "guarded.h"

namespace {

void check(int status, const char* what) {
  if (status != 0)
    throw std::runtime_error(std::string("oneDNN: ") + what + " failed with status " + std::to_string(status));
}

dnnl_engine* engine() {
  static dnnl_engine* const one = [] {
    dnnl_engine* made = nullptr;
    check(dnnl_engine_create(&made, dnnl::CPU, 0), "dnnl_engine_create");
    return made;
  }();
  return one;
}

dnnl_stream* stream() {
  thread_local dnnl_stream* const one = [] {
    dnnl_stream* made = nullptr;
    check(dnnl_stream_create(&made, engine(), dnnl::IN_ORDER), "dnnl_stream_create");
    return made;
  }();
  return one;
}

template <typename T>
using Owned = std::unique_ptr<T, int (*)(T*)>;

using Layout = Owned<dnnl_memory_desc>;
using Sizes = std::vector<int64_t>;

Layout strided(const Sizes& sizes, int type, const Sizes& strides) {
  dnnl_memory_desc* made = nullptr;
  check(dnnl_memory_desc_create_with_strides(&made, int(sizes.size()), sizes.data(), type, strides.data()),
        "dnnl_memory_desc_create_with_strides");
  return Layout(made, dnnl_memory_desc_destroy);
}

Layout any_layout(const Sizes& sizes, int type) {
  dnnl_memory_desc* made = nullptr;
  check(dnnl_memory_desc_create_with_tag(&made, int(sizes.size()), sizes.data(), type, dnnl::ANY_LAYOUT),
        "dnnl_memory_desc_create_with_tag");
  return Layout(made, dnnl_memory_desc_destroy);
}

Layout copy(const dnnl_memory_desc* other) {
  dnnl_memory_desc* made = nullptr;
  check(dnnl_memory_desc_clone(&made, other), "dnnl_memory_desc_clone");
  return Layout(made, dnnl_memory_desc_destroy);
}

enum Kind : int64_t { FORWARD, OF_IMAGES, OF_KERNEL };

// All that a primitive depends on.
struct Task {
  Kind kind;
  int type;
  bool has_bias;
  bool depthwise;
  Sizes images, kernel, result;  // NHWC; OHWI or HWIO; NHWC
  int64_t stride, top, bottom, left, right;
  float low, high;

  auto key() const {
    return std::tie(kind, type, has_bias, depthwise, images, kernel, result, stride, top, bottom, left, right, low,
                    high);
  }
  bool operator<(const Task& other) const { return key() < other.key(); }

  Layout pixels(const Sizes& nhwc) const {
    const int64_t height = nhwc[1], width = nhwc[2], channels = nhwc[3];
    return strided({nhwc[0], channels, height, width}, type,
                   {height * width * channels, 1, width * channels, channels});
  }
  Sizes kernel_sizes() const {  // outputs, inputs, rows, columns; of depthwise convolutions after the groups
    if (depthwise) return {kernel[3], 1, 1, kernel[0], kernel[1]};
    return {kernel[0], kernel[3], kernel[1], kernel[2]};
  }
  Layout kernel_layout() const {
    const int64_t rows = kernel[1], columns = kernel[2], last = kernel[3];
    if (depthwise) return strided(kernel_sizes(), type, {1, last, last, kernel[1] * last, last});
    return strided(kernel_sizes(), type, {rows * columns * last, 1, columns * last, last});
  }
};

struct Primitive {
  Owned<dnnl_primitive> primitive{nullptr, nullptr}, reorder{nullptr, nullptr};  // no reorder: the layouts are equal
  Layout images, result, given_kernel, kernel, bias, scratchpad;
  size_t given_bytes, kernel_bytes, scratchpad_bytes;
};

// Destroys nothing: there is nothing, or it lives as long as the process.
template <typename T>
int nothing(T*) {
  return 0;
}

Owned<dnnl_primitive> create(const dnnl_primitive_desc* description) {
  dnnl_primitive* made = nullptr;
  check(dnnl_primitive_create(&made, description), "dnnl_primitive_create");
  return {made, nothing};
}

using Attributes = Owned<dnnl_primitive_attr>;
using Description = Owned<dnnl_primitive_desc>;

Attributes attributes(const Task& task) {
  dnnl_primitive_attr* made = nullptr;
  check(dnnl_primitive_attr_create(&made), "dnnl_primitive_attr_create");
  Attributes all(made, dnnl_primitive_attr_destroy);
  check(dnnl_primitive_attr_set_scratchpad_mode(made, dnnl::CALLER_OWNS_SCRATCHPAD),
        "dnnl_primitive_attr_set_scratchpad_mode");
  if (!std::isinf(task.low)) {
    dnnl_post_ops* operations = nullptr;
    check(dnnl_post_ops_create(&operations), "dnnl_post_ops_create");
    Owned<dnnl_post_ops> owner(operations, dnnl_post_ops_destroy);
    const bool relu = task.low == 0 && std::isinf(task.high);
    check(dnnl_post_ops_append_eltwise(operations, relu ? dnnl::RELU : dnnl::CLIP, relu ? 0 : task.low,
                                       relu ? 0 : task.high),
          "dnnl_post_ops_append_eltwise");
    check(dnnl_primitive_attr_set_post_ops(made, operations), "dnnl_primitive_attr_set_post_ops");
  }
  return all;
}

std::unique_ptr<Primitive> make(const Task& task) {
  const Attributes attributes_of = attributes(task);
  const dnnl_primitive_attr* attr = attributes_of.get();
  Layout images = task.pixels(task.images), result = task.pixels(task.result), given = task.kernel_layout();
  const Layout free_kernel = any_layout(task.kernel_sizes(), task.type);
  Layout bias(nullptr, dnnl_memory_desc_destroy);
  if (task.has_bias) bias = strided({task.result[3]}, dnnl::FLOAT32, {1});
  const int64_t strides[] = {task.stride, task.stride}, dilations[] = {0, 0};
  const int64_t before[] = {task.top, task.left}, after[] = {task.bottom, task.right};

  dnnl_primitive_desc* made = nullptr;
  check(dnnl_convolution_forward_primitive_desc_create(
            &made, engine(), task.kind == FORWARD ? dnnl::INFERENCE : dnnl::TRAINING, dnnl::DIRECT, images.get(),
            free_kernel.get(), bias.get(), result.get(), strides, dilations, before, after, attr),
        "dnnl_convolution_forward_primitive_desc_create");
  const Description forward(made, dnnl_primitive_desc_destroy);
  made = nullptr;
  if (task.kind == OF_IMAGES)
    check(dnnl_convolution_backward_data_primitive_desc_create(&made, engine(), dnnl::DIRECT, images.get(),
                                                               free_kernel.get(), result.get(), strides, dilations,
                                                               before, after, forward.get(), attr),
          "dnnl_convolution_backward_data_primitive_desc_create");
  if (task.kind == OF_KERNEL)
    check(dnnl_convolution_backward_weights_primitive_desc_create(&made, engine(), dnnl::DIRECT, images.get(),
                                                                  free_kernel.get(), nullptr, result.get(), strides,
                                                                  dilations, before, after, forward.get(), attr),
          "dnnl_convolution_backward_weights_primitive_desc_create");
  const Description backward(made, made ? dnnl_primitive_desc_destroy : nothing<dnnl_primitive_desc>);
  const dnnl_primitive_desc* const description = task.kind == FORWARD ? forward.get() : backward.get();
  const auto query = [&](int what) { return copy(dnnl_primitive_desc_query_md(description, what, 0)); };
  Layout kernel = query(task.kind == OF_KERNEL ? dnnl::GRADIENT_OF_WEIGHTS_OF : dnnl::WEIGHTS_OF);
  Layout scratchpad = query(dnnl::SCRATCHPAD_OF);

  auto found = std::make_unique<Primitive>(Primitive{create(description),
                                                     {nullptr, nothing},
                                                     std::move(images),
                                                     std::move(result),
                                                     std::move(given),
                                                     std::move(kernel),
                                                     std::move(bias),
                                                     std::move(scratchpad),
                                                     0,
                                                     0,
                                                     0});
  found->given_bytes = dnnl_memory_desc_get_size(found->given_kernel.get());
  found->kernel_bytes = dnnl_memory_desc_get_size(found->kernel.get());
  found->scratchpad_bytes = dnnl_memory_desc_get_size(found->scratchpad.get());
  if (!dnnl_memory_desc_equal(found->given_kernel.get(), found->kernel.get())) {
    const dnnl_memory_desc *from = found->given_kernel.get(), *to = found->kernel.get();
    if (task.kind == OF_KERNEL) std::swap(from, to);
    check(dnnl_reorder_primitive_desc_create(&made, from, engine(), to, engine(), nullptr),
          "dnnl_reorder_primitive_desc_create");
    found->reorder = create(Description(made, dnnl_primitive_desc_destroy).get());
  }
  return found;
}

const Primitive& primitive(const Task& task) {
  static std::mutex mutex;
  static auto& kept =
      *new std::map<Task, std::unique_ptr<Primitive>>;  // never destroyed: threads may still run at exit
  const std::lock_guard<std::mutex> lock(mutex);
  auto& entry = kept[task];
  if (!entry) entry = make(task);
  return *entry;
}

Owned<dnnl_memory> memory(const Layout& layout, void* data) {
  dnnl_memory* made = nullptr;
  if (layout) check(dnnl_memory_create(&made, layout.get(), engine(), data), "dnnl_memory_create");
  return {made, made ? dnnl_memory_destroy : nothing<dnnl_memory>};
}

void execute(const dnnl_primitive* primitive, const std::vector<dnnl_exec_arg_t>& arguments) {
  check(dnnl_primitive_execute(primitive, stream(), int(arguments.size()), arguments.data()), "dnnl_primitive_execute");
  check(dnnl_stream_wait(stream()), "dnnl_stream_wait");
}

using Bytes = std::shared_ptr<void>;

Bytes allocate(size_t size) {
  void* const data = size ? std::aligned_alloc(64, (size + 63) / 64 * 64) : nullptr;
  if (size && !data) throw std::bad_alloc();
  return Bytes(data, std::free);
}

Bytes reorder(const Primitive& found, void* kernel) {
  const Bytes reordered = allocate(found.kernel_bytes);
  const auto from = memory(found.given_kernel, kernel), to = memory(found.kernel, reordered.get());
  execute(found.reorder.get(), {{dnnl::SOURCE, from.get()}, {dnnl::DESTINATION, to.get()}});
  return reordered;
}

// Kernels of inference, which stay the same from batch to batch. So each is reordered once. Its address may be reused, so
// its content is compared with a copy.
class ReorderedKernels {
 public:
  Bytes find(const Primitive& found, void* kernel) {
    if (const Bytes known = look_up(found, kernel)) return known;
    const Bytes copy = allocate(found.given_bytes), reordered = reorder(found, kernel);
    std::memcpy(copy.get(), kernel, found.given_bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_[{&found, kernel}] = {copy, reordered, ++uses_};
    if (entries_.size() > MOST) drop_oldest();
    return reordered;
  }

 private:
  static constexpr size_t MOST = 200;  // more than the convolutions of a network

  struct Entry {
    Bytes given, reordered;
    int64_t used;
  };

  Bytes look_up(const Primitive& found, const void* kernel) {
    Entry entry;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto place = entries_.find({&found, kernel});
      if (place == entries_.end()) return nullptr;
      place->second.used = ++uses_;
      entry = place->second;
    }
    return std::memcmp(entry.given.get(), kernel, found.given_bytes) ? nullptr : entry.reordered;
  }

  void drop_oldest() {
    entries_.erase(std::min_element(entries_.begin(), entries_.end(), [](const auto& one, const auto& other) {
      return one.second.used < other.second.used;
    }));
  }

  std::mutex mutex_;
  std::map<std::pair<const Primitive*, const void*>, Entry> entries_;
  int64_t uses_ = 0;
};

void run(const Task& task, void* images, void* kernel, void* bias, void* result) {
  static auto& reordered_kernels = *new ReorderedKernels;  // never destroyed, as primitives
  const Primitive& found = primitive(task);
  const bool reorders_in = found.reorder && task.kind != OF_KERNEL,
             reorders_out = found.reorder && task.kind == OF_KERNEL;
  Bytes reordered;
  if (reorders_in) reordered = task.has_bias ? reordered_kernels.find(found, kernel) : reorder(found, kernel);
  if (reorders_out) reordered = allocate(found.kernel_bytes);
  const Bytes scratchpad = allocate(found.scratchpad_bytes);
  const auto of_images = memory(found.images, images), of_result = memory(found.result, result);
  const auto of_kernel = memory(found.kernel, reordered ? reordered.get() : kernel);
  const auto of_bias = memory(found.bias, bias), scratch = memory(found.scratchpad, scratchpad.get());

  std::vector<dnnl_exec_arg_t> arguments = {{dnnl::SCRATCHPAD, scratch.get()}};
  const auto add = [&](dnnl::Argument argument, const Owned<dnnl_memory>& of) {
    arguments.push_back({argument, of.get()});
  };
  add(task.kind == OF_IMAGES ? dnnl::GRADIENT_OF_SOURCE : dnnl::SOURCE, of_images);
  add(task.kind == OF_KERNEL ? dnnl::GRADIENT_OF_WEIGHTS : dnnl::WEIGHTS, of_kernel);
  add(task.kind == FORWARD ? dnnl::DESTINATION : dnnl::GRADIENT_OF_DESTINATION, of_result);
  if (task.has_bias) add(dnnl::BIAS, of_bias);
  execute(found.primitive.get(), arguments);
  if (!reorders_out) return;
  const auto given = memory(found.given_kernel, kernel);
  execute(found.reorder.get(), {{dnnl::SOURCE, of_kernel.get()}, {dnnl::DESTINATION, given.get()}});
}

template <typename Buffer>
Sizes sizes(const Buffer& buffer) {
  const auto dimensions = buffer.dimensions();
  return Sizes(dimensions.begin(), dimensions.end());
}

struct Geometry {
  int64_t stride, top, bottom, left, right;
};

// Runs a convolution or a gradient of it. `bias` has no element if there is none.
ffi::Error convolve(Kind kind, bool depthwise, ffi::AnyBuffer images, ffi::AnyBuffer kernel, const ffi::AnyBuffer* bias,
                    ffi::AnyBuffer result, Geometry geometry, float low, float high) {
  return guarded([&] {
    if (images.element_type() != result.element_type() || images.element_type() != kernel.element_type())
      throw std::runtime_error("a convolution of arrays of different types");
    const bool has_bias = bias && bias->element_count();
    const Task task{kind,          images.element_type() == ffi::BF16 ? dnnl::BFLOAT16 : dnnl::FLOAT32,
                    has_bias,      depthwise,
                    sizes(images), sizes(kernel),
                    sizes(result), geometry.stride,
                    geometry.top,  geometry.bottom,
                    geometry.left, geometry.right,
                    low,           high};
    run(task, images.untyped_data(), kernel.untyped_data(), has_bias ? bias->untyped_data() : nullptr,
        result.untyped_data());
  });
}

ffi::Error forward(ffi::AnyBuffer images, ffi::AnyBuffer kernel, ffi::AnyBuffer bias,
                   ffi::Result<ffi::AnyBuffer> result, bool depthwise, int64_t stride, int64_t top, int64_t bottom,
                   int64_t left, int64_t right, float low, float high) {
  return convolve(FORWARD, depthwise, images, kernel, &bias, *result, {stride, top, bottom, left, right}, low, high);
}

ffi::Error of_images(ffi::AnyBuffer gradient, ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> images, bool depthwise,
                     int64_t stride, int64_t top, int64_t bottom, int64_t left, int64_t right) {
  return convolve(OF_IMAGES, depthwise, *images, kernel, nullptr, gradient, {stride, top, bottom, left, right},
                  -INFINITY, INFINITY);
}

ffi::Error of_kernel(ffi::AnyBuffer images, ffi::AnyBuffer gradient, ffi::Result<ffi::AnyBuffer> kernel, bool depthwise,
                     int64_t stride, int64_t top, int64_t bottom, int64_t left, int64_t right) {
  return convolve(OF_KERNEL, depthwise, images, *kernel, nullptr, gradient, {stride, top, bottom, left, right},
                  -INFINITY, INFINITY);
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
    with_geometry(
        ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>())
        .Attr<float>("low")
        .Attr<float>("high"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    gradient_of_images, of_images,
    with_geometry(ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    gradient_of_kernel, of_kernel,
    with_geometry(ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()));
