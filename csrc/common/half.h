// bfloat16 and float16 at the door of a kernel: to float32 and back, rounding to nearest even.
// Arithmetic is float32 throughout. Selects instead of branches and no conversion instruction, so
// that loops over them vectorise at every instruction-set level.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastgen {

// Bit patterns; distinct types so that overloads tell them apart.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

#ifdef FASTGEN_ISA_NS
namespace FASTGEN_ISA_NS {
namespace {

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

inline float load(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  // Multiplying by 2^112 moves the exponent's bias and normalises subnormals; what was infinity or
  // NaN gets all exponent bits.
  const float scaled = float_of(magnitude) * float_of(0x77800000);
  const uint32_t special = magnitude >= 0x0f800000 ? 0x7f800000 : 0;
  return float_of(bits_of(scaled) | special | sign);
}

inline void store(float x, float* out) { *out = x; }
inline void store(double x, double* out) { *out = x; }

inline void store(float x, BFloat16* out) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40;
  out->bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

inline void store(float x, Float16* out) {
  const uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  // Subnormal: adding 0.5 leaves the rounded bits at the end of the float's mantissa.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? 0x7c00 : half;  // rounds to infinity
  half = magnitude > 0x7f800000 ? 0x7e00 : half;   // NaN
  out->bits = static_cast<uint16_t>(half | sign);
}

// The arithmetic type of a storage type.
template <class S>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};

}  // namespace
}  // namespace FASTGEN_ISA_NS
#endif  // FASTGEN_ISA_NS
}  // namespace fastgen
