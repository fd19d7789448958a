// The kernels of the sampling engine.
#pragma once

#include "common/isa.h"
#include "engine/program.h"

namespace fastgen {

// What is drawn from: the likelihoods of fastgen/likelihoods.py.
struct Likelihood {
  enum Kind : int32_t { kCategorical, kBernoulli, kLogisticMixture };
  Kind kind;
  int64_t levels, components;
  double temperature;
  int64_t top_k;  // 0: all
  double top_p;   // 0: all
};

template <class T>
struct SamplerFunctions {
  // Bytes of a linear's packed bias and weights, and how to fill them. bias may be null.
  int64_t (*packed_bytes)(const engine::Instruction&);
  void (*pack)(const engine::Instruction&, const double* weight, const double* bias, void* packed);
  // Rows [first, first + count) of an instruction's table for all images.
  void (*run)(const engine::Instruction&, int64_t first, int64_t count, const engine::Images<T>&);
  bool (*any_nan)(const T* values, int64_t count);
  // `codes` codes from one draw's parameters, with uniforms (D, codes).
  void (*draw)(const Likelihood&, const T* params, int64_t count, const double* uniforms,
               int64_t codes, int64_t* out, const engine::Scratch&);
};

// By the storage of the weights; bfloat16 computes in float32.
struct SamplerKernels {
  SamplerFunctions<float> float32, bfloat16;
  SamplerFunctions<double> float64;
};

FASTGEN_DECLARE_KERNELS(SamplerKernels, sampler)

}  // namespace fastgen
