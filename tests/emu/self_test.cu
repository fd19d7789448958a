// Kernels that say whether cuda_on_cpu keeps CUDA's rules, and some that break them.
#include "cuda/launch.cuh"

namespace {

constexpr unsigned kAll = ~0u;

__global__ void exchange(int* out) {
  const int rank = threadIdx.x, lane = rank % 32;
  int* const mine = out + (blockIdx.x * blockDim.x + rank) * 8;
  mine[0] = __shfl_sync(kAll, rank, 3);
  mine[1] = __shfl_sync(kAll, rank, 3, 8);
  mine[2] = __shfl_down_sync(kAll, rank, 5);
  mine[3] = __shfl_up_sync(kAll, rank, 5, 16);
  mine[4] = __shfl_xor_sync(kAll, rank, 1);
  mine[5] = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
  // halves of a warp that go their own ways
  mine[6] = lane < 16 ? __shfl_sync(0x0000ffffu, rank, 2) : __shfl_sync(0xffff0000u, rank, 20);
  mine[7] = __any_sync(kAll, lane == 31) + 2 * __all_sync(kAll, lane < 31);
}

// Every lane but the last turns up at the barrier; the last has ended.
__global__ void reversed(const int* in, int* out) {
  FASTGEN_DYNAMIC_SHARED(int, held);
  const int last = static_cast<int>(blockDim.x) - 1;
  if (static_cast<int>(threadIdx.x) == last) return;
  held[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = held[last - 1 - threadIdx.x];
}

__global__ void fresh(float* out) {
  FASTGEN_SHARED(float, kept, 32);
  FASTGEN_DYNAMIC_SHARED(float, dynamic);
  out[2 * blockIdx.x] = kept[threadIdx.x];
  out[2 * blockIdx.x + 1] = dynamic[threadIdx.x];
  kept[threadIdx.x] = dynamic[threadIdx.x] = 1;
}

__global__ void places(unsigned* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

__global__ void barriers_that_differ() {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void waits_for_ever() {
  if (threadIdx.x == 0) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

__global__ void outside_its_mask(int* out) { out[threadIdx.x] = __shfl_sync(0xffu, 1, 0); }

__global__ void from_outside_the_mask(int* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xffu, 1, 9);
}

}  // namespace

extern "C" {

void set_order(bool reverse, int blocks) {
  cuda_on_cpu::settings().reverse = reverse;
  cuda_on_cpu::settings().blocks = blocks;
}
void run_exchange(int* out) { FASTGEN_LAUNCH(exchange, 3, 64, 0, nullptr, out); }
void run_reversed(const int* in, int* out, int threads) {
  FASTGEN_LAUNCH(reversed, 1, threads, threads * sizeof(int), nullptr, in, out);
}
void run_fresh(float* out) { FASTGEN_LAUNCH(fresh, 2, 1, sizeof(float), nullptr, out); }
void run_places(unsigned* out) {
  FASTGEN_LAUNCH(places, dim3(2, 3, 2), dim3(4, 2, 3), 0, nullptr, out);
}
void run_barriers_that_differ(int*) { FASTGEN_LAUNCH(barriers_that_differ, 1, 32, 0, nullptr, ); }
void run_waits_for_ever(int*) { FASTGEN_LAUNCH(waits_for_ever, 1, 32, 0, nullptr, ); }
void run_outside_its_mask(int* out) { FASTGEN_LAUNCH(outside_its_mask, 1, 32, 0, nullptr, out); }
void run_from_outside_the_mask(int* out) {
  FASTGEN_LAUNCH(from_outside_the_mask, 1, 32, 0, nullptr, out);
}

}  // extern "C"
