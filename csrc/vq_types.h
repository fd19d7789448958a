// Kernels of the vector-quantisation ops by the type they read and the type they compute in, which
// is float64 if x or the codebook is, else float32.
#pragma once

namespace fastgen {

template <class Function>
struct VqKernelsByType {
  struct Arithmetic {
    Function in_float32, in_float64;
  };
  Arithmetic float32, float64, bfloat16, float16;
};

// The table of a function template name<Storage, Arithmetic>. float64 is never read into float32.
#define FASTGEN_VQ_KERNELS(name)                       \
  {                                                    \
      {name<float, float>, name<float, double>},       \
      {nullptr, name<double, double>},                 \
      {name<BFloat16, float>, name<BFloat16, double>}, \
      {name<Float16, float>, name<Float16, double>},   \
  }

}  // namespace fastgen
