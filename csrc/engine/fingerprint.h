#pragma once

#include <cstdint>

namespace fastgen {

// A 64-bit hash of memory's content at the speed of memory, to notice changed weights. The same on
// every machine of one byte order; no defence against an adversary.
uint64_t fingerprint(const void* data, int64_t bytes, uint64_t seed);

}  // namespace fastgen
