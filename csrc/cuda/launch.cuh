// What CUDA's own syntax is needed for, in macros that a plain C++ compiler can give another
// meaning: tests/emu runs the same kernels on the CPU.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>

// T name[count], the block's own.
#define FASTGEN_SHARED(T, name, count) __shared__ T name[count]
#define FASTGEN_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char fastgen_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(fastgen_dynamic_shared)
#define FASTGEN_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)

#else
#include "cuda_on_cpu.h"
#endif
