#include "primitives.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

namespace primitives {

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

using Layout = Owned<dnnl_memory_desc>;

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

Layout pixels(const Sizes& nhwc, int type) {
  const int64_t height = nhwc[1], width = nhwc[2], channels = nhwc[3];
  return strided({nhwc[0], channels, height, width}, type, {height * width * channels, 1, width * channels, channels});
}

// Outputs, inputs, rows, columns; of depthwise convolutions after the groups.
Sizes kernel_sizes(const Task& task) {
  const Sizes& kernel = task.kernel;
  if (task.geometry.depthwise) return {kernel[3], 1, 1, kernel[0], kernel[1]};
  return {kernel[0], kernel[3], kernel[1], kernel[2]};
}

Layout kernel_layout(const Task& task) {
  const int64_t rows = task.kernel[1], columns = task.kernel[2], last = task.kernel[3];
  if (task.geometry.depthwise) return strided(kernel_sizes(task), task.type, {1, last, last, rows * last, last});
  return strided(kernel_sizes(task), task.type, {rows * columns * last, 1, columns * last, last});
}

}  // namespace

struct Primitive {
  Task task;
  Owned<dnnl_primitive> primitive{nullptr, nullptr}, reorder{nullptr, nullptr};  // no reorder: the layouts are equal
  Layout images, result, given_kernel, kernel, bias, scratchpad;
  size_t kernel_bytes, scratchpad_bytes;
};

namespace {

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
  dnnl_post_ops* operations = nullptr;
  check(dnnl_post_ops_create(&operations), "dnnl_post_ops_create");
  Owned<dnnl_post_ops> owner(operations, dnnl_post_ops_destroy);
  if (task.has_addend)
    check(dnnl_post_ops_append_binary(operations, dnnl::ADD, pixels(task.result, task.type).get()),
          "dnnl_post_ops_append_binary");
  if (!std::isinf(task.geometry.low)) {
    const bool relu = task.geometry.low == 0 && std::isinf(task.geometry.high);
    check(dnnl_post_ops_append_eltwise(operations, relu ? dnnl::RELU : dnnl::CLIP, relu ? 0 : task.geometry.low,
                                       relu ? 0 : task.geometry.high),
          "dnnl_post_ops_append_eltwise");
  }
  check(dnnl_primitive_attr_set_post_ops(made, operations), "dnnl_primitive_attr_set_post_ops");
  return all;
}

// How many threads the primitives will have that this thread makes.
class Threads {
 public:
  explicit Threads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
  ~Threads() { omp_set_num_threads(before_); }
  Threads(const Threads&) = delete;

 private:
  int before_;
};

std::unique_ptr<Primitive> make(const Task& task) {
  const Threads threads(task.one_thread ? 1 : omp_get_max_threads());
  const Attributes attributes_of = attributes(task);
  const dnnl_primitive_attr* attr = attributes_of.get();
  Layout images = pixels(task.images, task.type), result = pixels(task.result, task.type), given = kernel_layout(task);
  const Layout free_kernel = any_layout(kernel_sizes(task), task.type);
  Layout bias(nullptr, dnnl_memory_desc_destroy);
  if (task.has_bias) bias = strided({task.result[3]}, dnnl::FLOAT32, {1});
  const int64_t strides[] = {task.geometry.stride, task.geometry.stride}, dilations[] = {0, 0};
  const int64_t before[] = {task.geometry.top, task.geometry.left}, after[] = {task.geometry.bottom, task.geometry.right};

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

  auto found = std::make_unique<Primitive>(Primitive{task,
                                                     create(description),
                                                     {nullptr, nothing},
                                                     std::move(images),
                                                     std::move(result),
                                                     std::move(given),
                                                     std::move(kernel),
                                                     std::move(bias),
                                                     std::move(scratchpad),
                                                     0,
                                                     0});
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

Owned<dnnl_memory> memory(const Layout& layout, void* data) {
  dnnl_memory* made = nullptr;
  if (layout) check(dnnl_memory_create(&made, layout.get(), engine(), data), "dnnl_memory_create");
  return {made, made ? dnnl_memory_destroy : nothing<dnnl_memory>};
}

void execute(const dnnl_primitive* primitive, const std::vector<dnnl_exec_arg_t>& arguments) {
  check(dnnl_primitive_execute(primitive, stream(), int(arguments.size()), arguments.data()), "dnnl_primitive_execute");
  check(dnnl_stream_wait(stream()), "dnnl_stream_wait");
}

// Copies a kernel into the primitive's layout, or, if it is a result, out of it.
void reorder(const Primitive& found, void* given, void* kernel) {
  const auto of_given = memory(found.given_kernel, given), of_kernel = memory(found.kernel, kernel);
  const bool out = found.task.kind == OF_KERNEL;
  execute(found.reorder.get(), {{out ? dnnl::DESTINATION : dnnl::SOURCE, of_given.get()},
                                {out ? dnnl::SOURCE : dnnl::DESTINATION, of_kernel.get()}});
}

Bytes reordered_copy(const Primitive& found, void* kernel) {
  const Bytes copy = allocate(found.kernel_bytes);
  reorder(found, kernel, copy.get());
  return copy;
}

// Reorders each kernel of inference once. Equal fingerprints are of kernels with equal content.
class ReorderedKernels {
 public:
  Bytes find(const Primitive& found, void* kernel, const Fingerprint& fingerprint) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto place = entries_.find({&found, fingerprint});
      if (place != entries_.end()) {
        place->second.used = ++uses_;
        return place->second.reordered;
      }
    }
    const Bytes reordered = reordered_copy(found, kernel);
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_[{&found, fingerprint}] = {reordered, ++uses_};
    if (entries_.size() > MOST) drop_oldest();
    return reordered;
  }

 private:
  static constexpr size_t MOST = 200;  // more than the convolutions of a network

  struct Entry {
    Bytes reordered;
    int64_t used;
  };

  void drop_oldest() {
    entries_.erase(std::min_element(entries_.begin(), entries_.end(), [](const auto& one, const auto& other) {
      return one.second.used < other.second.used;
    }));
  }

  std::mutex mutex_;
  std::map<std::pair<const Primitive*, Fingerprint>, Entry> entries_;
  int64_t uses_ = 0;
};

}  // namespace

const Primitive& primitive(const Task& task) {
  static std::mutex mutex;
  static auto& kept =
      *new std::map<Task, std::unique_ptr<Primitive>>;  // never destroyed: threads may still run at exit
  const std::lock_guard<std::mutex> lock(mutex);
  auto& entry = kept[task];
  if (!entry) entry = make(task);
  return *entry;
}

Bytes allocate(size_t size) {
  void* const data = size ? std::aligned_alloc(64, (size + 63) / 64 * 64) : nullptr;
  if (size && !data) throw std::bad_alloc();
  return Bytes(data, std::free);
}

size_t scratchpad_bytes(const Primitive& found) { return found.scratchpad_bytes; }

Execution::Execution(const Primitive& found) : found_(&found) {
  for (const Layout* layout : {&found.images, &found.kernel, &found.bias, &found.result, &found.scratchpad})
    memories_.push_back(memory(*layout, nullptr));
  if (found.task.has_addend) memories_.push_back(memory(found.result, nullptr));
}

void Execution::operator()(void* images, void* kernel, void* bias, void* addend, void* result,
                           void* scratchpad) const {
  const Kind kind = found_->task.kind;
  const int meanings[] = {kind == OF_IMAGES ? dnnl::GRADIENT_OF_SOURCE : dnnl::SOURCE,
                          kind == OF_KERNEL ? dnnl::GRADIENT_OF_WEIGHTS : dnnl::WEIGHTS, dnnl::BIAS,
                          kind == FORWARD ? dnnl::DESTINATION : dnnl::GRADIENT_OF_DESTINATION, dnnl::SCRATCHPAD,
                          dnnl::OPERAND_OF_FIRST_POST_OP};
  void* const places[] = {images, kernel, bias, result, scratchpad, addend};
  std::vector<dnnl_exec_arg_t> arguments;
  for (size_t index = 0; index < memories_.size(); ++index) {
    dnnl_memory* const memory = memories_[index].get();
    if (!memory) continue;
    check(dnnl_memory_set_data_handle(memory, places[index]), "dnnl_memory_set_data_handle");
    arguments.push_back({meanings[index], memory});
  }
  execute(found_->primitive.get(), arguments);
}

Bytes reordered(const Primitive& found, void* kernel, const std::optional<Fingerprint>& fingerprint) {
  static auto& kernels = *new ReorderedKernels;  // never destroyed, as primitives
  if (!found.reorder) return Bytes(kernel, nothing<void>);
  return fingerprint ? kernels.find(found, kernel, *fingerprint) : reordered_copy(found, kernel);
}

void run(const Task& task, void* images, void* kernel, void* bias, void* addend, void* result,
         const std::optional<Fingerprint>& fingerprint) {
  const Primitive& found = primitive(task);
  const Bytes scratchpad = allocate(found.scratchpad_bytes);
  const bool reorders_out = found.reorder && task.kind == OF_KERNEL;
  const Bytes own = reorders_out ? allocate(found.kernel_bytes) : reordered(found, kernel, fingerprint);
  Execution{found}(images, own.get(), bias, addend, result, scratchpad.get());
  if (reorders_out) reorder(found, kernel, own.get());
}

}  // namespace primitives
