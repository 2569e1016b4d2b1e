// oneDNN's primitives of convolutions. Images are NHWC. Kernels are OHWI, those of depthwise convolutions HWIO with I = 1.
//
// oneDNN chooses the layout of the kernels that it computes with, so they are reordered first. A primitive is made once
// for each task and kept for ever. All functions may be called from any thread.

#pragma once

#include <array>
#include <cmath>
#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "dnnl.h"

namespace primitives {

using Sizes = std::vector<int64_t>;
using Bytes = std::shared_ptr<void>;
using Fingerprint = std::array<uint32_t, 4>;  // a digest of a kernel's content

template <typename T>
using Owned = std::unique_ptr<T, int (*)(T*)>;

enum Kind : int64_t { FORWARD, OF_IMAGES, OF_KERNEL };

// How a convolution moves over images, and the limits to which its results are clamped.
struct Geometry {
  bool depthwise;
  int64_t stride, top, bottom, left, right;
  float low = -INFINITY, high = INFINITY;

  auto operator<=>(const Geometry&) const = default;
};

// All that a primitive depends on.
struct Task {
  Kind kind;
  int type;
  bool has_bias;
  bool has_addend;               // an array like the result that is added to it before the clamp
  bool one_thread;               // whether the thread that executes it computes it alone
  Sizes images, kernel, result;  // NHWC; OHWI or HWIO; NHWC
  Geometry geometry;

  auto operator<=>(const Task&) const = default;
};

struct Primitive;

const Primitive& primitive(const Task& task);

// Memory aligned for vectors. It is a null pointer if `size` is 0.
Bytes allocate(size_t size);

size_t scratchpad_bytes(const Primitive& found);

// Computes a primitive again and again. Making the arguments can take as long as computing it.
class Execution {
 public:
  explicit Execution(const Primitive& found);

  // If the primitive reorders kernels, `kernel` is a reordered one.
  void operator()(void* images, void* kernel, void* bias, void* addend, void* result, void* scratchpad) const;

 private:
  const Primitive* found_;
  std::vector<Owned<dnnl_memory>> memories_;  // null where the primitive needs none
};

// The kernel in the primitive's layout. With a fingerprint, the copy is kept: in inference, kernels stay the same from
// batch to batch.
Bytes reordered(const Primitive& found, void* kernel, const std::optional<Fingerprint>& fingerprint);

// Computes a task once, with the kernel in its own layout.
void run(const Task& task, void* images, void* kernel, void* bias, void* addend, void* result,
         const std::optional<Fingerprint>& fingerprint = {});

}  // namespace primitives
