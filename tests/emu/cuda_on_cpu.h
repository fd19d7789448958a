// Runs CUDA kernels on the CPU, for tests: what csrc/cuda/launch.cuh includes where nvcc does not
// compile. Each CUDA thread (a "lane") is a fiber, or a host thread in builds with
// -DCUDA_ON_CPU_THREADS, which is what a race detector needs.
//
// Stops with a message: a deadlock, lanes of a block at different __syncthreads(), a lane outside
// its own mask, a shuffle from a lane outside the mask.
// Weaker than a GPU: a shuffle orders memory here, there only __syncwarp() does. Not emulated:
// inline PTX, asynchronous copies, matrix instructions, clusters.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__ &  // of `const T __grid_constant__ name`: no copy for each lane

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  size_t volume() const { return size_t(x) * y * z; }
  dim3 at(size_t i) const { return dim3(i % x, i / x % y, i / x / y); }
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

namespace cuda_on_cpu {

struct Block;
struct Lane {
  Block* block;
  dim3 thread;
  unsigned rank;  // among the block's lanes
};

extern thread_local Lane* lane;  // the one that runs
const dim3& block_index();
const dim3& block_size();
const dim3& grid_size();

void sync_block(const char* site);
void sync_warp(unsigned mask);
// `bits` of every lane of the mask, by lane of the warp.
void exchange(unsigned mask, uint64_t bits, uint64_t (&of_warp)[32]);
// Shared memory of the running block for the declaration that `key` stands for, filled with NaN.
void* shared(const void* key, size_t bytes);
void* dynamic_shared();
[[noreturn]] void stop(const char* why);

// Runs the kernel for every block of the grid, settings().blocks of them alive at a time.
void launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            const std::function<void()>& kernel);

struct Settings {
  bool reverse = false;  // last lane and last block first
  int blocks = 1;
};
Settings& settings();

template <class T>
T take_from(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "one word at most");
  uint64_t bits = 0, of_warp[32];
  std::memcpy(&bits, &value, sizeof value);
  exchange(mask, bits, of_warp);
  if (!((mask >> source) & 1)) stop("a shuffle from a lane outside the mask");
  std::memcpy(&value, &of_warp[source], sizeof value);
  return value;
}

inline int lane_of_warp() { return static_cast<int>(lane->rank % 32); }

// The lane of `source` if it is in the same group of `width` lanes, else the own.
inline int within(int source, int width) {
  const int own = lane_of_warp();
  return source >= 0 && source / width == own / width ? source : own;
}

}  // namespace cuda_on_cpu

#define threadIdx (::cuda_on_cpu::lane->thread)
#define blockIdx (::cuda_on_cpu::block_index())
#define blockDim (::cuda_on_cpu::block_size())
#define gridDim (::cuda_on_cpu::grid_size())
#define warpSize 32

#define CUDA_ON_CPU_TEXT(x) #x
#define CUDA_ON_CPU_SITE(line) __FILE__ ":" CUDA_ON_CPU_TEXT(line)
#define __syncthreads() ::cuda_on_cpu::sync_block(CUDA_ON_CPU_SITE(__LINE__))
inline void __syncwarp(unsigned mask = ~0u) { cuda_on_cpu::sync_warp(mask); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = cuda_on_cpu::lane_of_warp() / width * width;
  return cuda_on_cpu::take_from(mask, value, first + (source & (width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int source = cuda_on_cpu::lane_of_warp() + static_cast<int>(by);
  return cuda_on_cpu::take_from(mask, value, cuda_on_cpu::within(source, width));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int source = cuda_on_cpu::lane_of_warp() - static_cast<int>(by);
  return cuda_on_cpu::take_from(mask, value, cuda_on_cpu::within(source, width));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
  const int source = cuda_on_cpu::lane_of_warp() ^ flip;
  return cuda_on_cpu::take_from(mask, value, cuda_on_cpu::within(source, width));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  uint64_t of_warp[32];
  cuda_on_cpu::exchange(mask, predicate != 0, of_warp);
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i) {
    if ((mask >> i) & 1) votes |= static_cast<unsigned>(of_warp[i]) << i;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
template <class T, class = std::enable_if_t<std::is_integral<T>::value>>
T atomicAdd(T* to, T value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

#define FASTGEN_SHARED(T, name, count) \
  static const char name##_key = 0;    \
  T* const name =                      \
      static_cast<T*>(::cuda_on_cpu::shared(&name##_key, sizeof(T) * static_cast<size_t>(count)))
#define FASTGEN_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::cuda_on_cpu::dynamic_shared())
#define FASTGEN_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::cuda_on_cpu::launch(grid, block, shared_bytes, stream, [&] { kernel(__VA_ARGS__); })
