// A fingerprint as an argument of a handler.

#pragma once

#include <cstring>
#include <optional>

#include "guarded.h"
#include "primitives.h"

// None if the argument has no element.
inline std::optional<primitives::Fingerprint> read_fingerprint(ffi::Buffer<ffi::U32> argument) {
  primitives::Fingerprint found;
  if (argument.element_count() != found.size()) return {};
  std::memcpy(found.data(), argument.typed_data(), sizeof found);
  return found;
}
