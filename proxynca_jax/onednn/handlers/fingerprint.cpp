// A digest of a kernel's content. It costs one pass over the kernel, and is computed when a network is folded.

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "guarded.h"

namespace {

constexpr uint64_t ODD = 0x9E3779B97F4A7C15;
constexpr int64_t LANES = 8;  // independent digests, which the processor computes at the same time

// For a given digest, different words have different results. For a given word, so have different digests: one changed
// word always shows.
uint64_t mixed(uint64_t digest, uint64_t word) { return std::rotl((digest ^ word) * ODD, 29); }

ffi::Error digest(ffi::Buffer<ffi::F32> kernel, ffi::Result<ffi::Buffer<ffi::U32>> result) {
  return guarded([&] {
    std::array<uint64_t, LANES> lanes;
    for (int64_t lane = 0; lane < LANES; ++lane) lanes[lane] = lane + 1;
    const int64_t words = kernel.element_count();
    const float* const values = kernel.typed_data();
    for (int64_t word = 0; word < words; word += LANES)
      for (int64_t lane = 0; lane < std::min(LANES, words - word); ++lane)
        lanes[lane] = mixed(lanes[lane], std::bit_cast<uint32_t>(values[word + lane]));
    std::array<uint64_t, 2> halves = {uint64_t(words), ~uint64_t(words)};
    for (const uint64_t lane : lanes)
      for (uint64_t& half : halves) half = mixed(half, lane);
    std::memcpy(result->typed_data(), halves.data(), sizeof halves);
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(fingerprint, digest,
                              ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::U32>>());
