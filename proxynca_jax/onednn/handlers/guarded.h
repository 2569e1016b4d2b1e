// What all handlers share: exceptions become errors of XLA, which Python raises.

#pragma once

#include <exception>
#include <new>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

template <typename Work>
ffi::Error guarded(const Work& work) {
  try {
    work();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory is left for an operation of the network");
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, error.what());
  }
  return ffi::Error::Success();
}
