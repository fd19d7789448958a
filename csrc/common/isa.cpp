#include "common/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastgen {
namespace {

#if defined(__x86_64__)
// Not every clang's __builtin_cpu_supports knows f16c.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

constexpr Isa kLevels[] = {Isa::kDefault, Isa::kAvx2, Isa::kAvx512};

Isa choose() {
  const char* forced = std::getenv("FASTGEN_ISA");
  if (forced != nullptr && *forced != '\0') {
    for (Isa level : kLevels) {
      if (isa_name(level) != std::string(forced)) continue;
      if (isa_supported(level)) return level;
      throw std::runtime_error("fastgen: FASTGEN_ISA=" + std::string(forced) +
                               " asks for instructions this CPU does not have; unset it");
    }
    throw std::runtime_error("fastgen: FASTGEN_ISA must be default, avx2 or avx512, got '" +
                             std::string(forced) + "'; unset it to use the best level");
  }
  if (isa_supported(Isa::kAvx512)) return Isa::kAvx512;
  return isa_supported(Isa::kAvx2) ? Isa::kAvx2 : Isa::kDefault;
}

}  // namespace

Isa active_isa() {
  static const Isa level = choose();
  return level;
}

const char* isa_name(Isa level) {
  switch (level) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "default";
  }
}

bool isa_supported(Isa level) {
  if (level == Isa::kDefault) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (level == Isa::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

bool multiplies_bfloat16() {
#if defined(__x86_64__)
  // asked once: in a virtual machine the instruction that tells takes microseconds
  static const bool has_instruction = [] {
    unsigned eax, ebx, ecx, edx;  // not every compiler's __builtin_cpu_supports knows it
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1 << 5);
  }();
  return has_instruction && active_isa() == Isa::kAvx512;
#else
  return false;
#endif
}

}  // namespace fastgen
