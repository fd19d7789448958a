// The instruction-set level of the CPU kernels: every csrc/cpu/<op>.cpp is compiled once per level
// and one level is chosen for the process. Header for the kernels' declarations and for the glue;
// torch-free.
#pragma once

namespace fastgen {

enum class Isa { kDefault, kAvx2, kAvx512 };

// The level in force: FASTGEN_ISA if set, else the best this CPU has. Throws std::runtime_error
// with one sentence when FASTGEN_ISA is unknown or asks for more than the CPU has.
Isa active_isa();
const char* isa_name(Isa level);
bool isa_supported(Isa level);
// Whether the level in force is avx512 on a CPU that also multiplies pairs of bfloat16.
bool multiplies_bfloat16();

template <class Table>
const Table& select_kernels(const Table* for_default, const Table* avx2, const Table* avx512) {
  switch (active_isa()) {
    case Isa::kAvx512:
      return *avx512;
    case Isa::kAvx2:
      return *avx2;
    default:
      return *for_default;
  }
}

}  // namespace fastgen

// FASTGEN_DECLARE_KERNELS(Table, op), inside namespace fastgen: each level's `const Table
// op_kernels`. FASTGEN_KERNELS(op): the table of the level in force.
#if defined(__x86_64__) || defined(_M_X64)
#define FASTGEN_DECLARE_KERNELS(Table, op) \
  namespace isa_default {                  \
  extern const Table op##_kernels;         \
  }                                        \
  namespace isa_avx2 {                     \
  extern const Table op##_kernels;         \
  }                                        \
  namespace isa_avx512 {                   \
  extern const Table op##_kernels;         \
  }
#define FASTGEN_KERNELS(op)                                        \
  ::fastgen::select_kernels(&::fastgen::isa_default::op##_kernels, \
                            &::fastgen::isa_avx2::op##_kernels,    \
                            &::fastgen::isa_avx512::op##_kernels)
#else
#define FASTGEN_DECLARE_KERNELS(Table, op) \
  namespace isa_default {                  \
  extern const Table op##_kernels;         \
  }
#define FASTGEN_KERNELS(op) (::fastgen::isa_default::op##_kernels)
#endif
