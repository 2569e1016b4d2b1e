// Vectors of channels, as wide as AVX-512's. On older processors the compiler splits them.

#pragma once

#include <cstdint>
#include <cstring>

constexpr int64_t LANES = 16;
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t))));

inline Vector load(const float* from) {
  Vector values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline void store(float* to, const Vector& values) { std::memcpy(to, &values, sizeof values); }

// The channels from `from` on that fill no vector, and zeros.
inline Vector load_some(const float* from, int64_t count) {
  Vector values = {};
  std::memcpy(&values, from, count * sizeof(float));
  return values;
}

inline void store_some(float* to, const Vector& values, int64_t count) {
  std::memcpy(to, &values, count * sizeof(float));
}
