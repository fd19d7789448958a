// One launch for many tensors: the table of their pointers travels in the kernel's arguments, so
// that a launch needs no copy of its own and can be captured in a graph. A block takes a piece of
// one tensor, which it finds by its number.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/multi_tensor.h"
#include "cuda/number.cuh"

namespace fastgen {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;
constexpr int kVectors = 2;  // of each operand a thread has, one after the other

// What a kernel's arguments may take. Since CUDA 12.1 it is 32 KB; the small table is the cheaper
// launch where it does.
constexpr size_t kSmallArguments = 4096;
#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
constexpr size_t kLargeArguments = kSmallArguments;
#else
constexpr size_t kLargeArguments = 32764;
#endif
constexpr size_t kForSettings = 256;  // of them, for what is not the table

// A row as a kernel has it.
template <int kOperands>
struct FlatRow {
  static constexpr bool kStrided = false;
  void* data[kOperands];
  float* step;
  const AdamFactors* factors;
  uint32_t elements;
  bool aligned;  // to kVectorBytes, in every operand
};

template <int kOperands>
struct StridedRow : FlatRow<kOperands> {
  static constexpr bool kStrided = true;
  int32_t dims;
  uint32_t sizes[kMaxDims];
  int64_t strides[kOperands][kMaxDims];
};

template <class RowT, size_t kBytes>
struct Table {
  static constexpr int kRows =
      static_cast<int>((kBytes - kForSettings) / (sizeof(RowT) + sizeof(int32_t)));
  RowT rows[kRows];
  int32_t first_block[kRows];
  int32_t count;

  // The last row that begins at or before this block.
  __device__ int find(int32_t block) const {
    int low = 0, high = count;  // first_block[low] <= block < first_block[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first_block[middle] <= block ? low : high) = middle;
    }
    return low;
  }
};

template <class S>
struct alignas(kVectorBytes) Vector {
  static constexpr int kSize = kVectorBytes / sizeof(S);
  S values[kSize];
};

template <class S>
constexpr uint32_t kElementsOfBlock = kThreads * kVectors * Vector<S>::kSize;

__device__ __forceinline__ void add_of_block(int mine, int64_t* total) {
  FASTGEN_SHARED(int, of_warp, kThreads / 32);
  for (int by = 16; by > 0; by /= 2) mine += __shfl_down_sync(~0u, mine, by);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x > 0) return;
  unsigned long long sum = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += of_warp[warp];
  if (sum > 0) atomicAdd(reinterpret_cast<unsigned long long*>(total), sum);
}

// An Update has
//   Storage, kOperands, kWritten: a bit for each operand that is written
//   kCounts, and then count: where the number of weights at a bound goes
//   Rule of(row, first): with what only the device knows. `first`: one thread of the row. A Rule
//   has
//     operands: a bit for each operand there is
//     int apply(values): updates one element, and says whether it is at a bound now

// Where element `index` of the row lies in operand j.
template <int kOperands>
__device__ __forceinline__ int64_t place(const FlatRow<kOperands>&, int, uint32_t index) {
  return index;
}

template <int kOperands>
__device__ __forceinline__ int64_t place(const StridedRow<kOperands>& row, int j, uint32_t index) {
  int64_t at = 0;
  for (int d = row.dims - 1; d > 0; --d) {
    const uint32_t outer = index / row.sizes[d];
    at += (index - outer * row.sizes[d]) * row.strides[j][d];
    index = outer;
  }
  return at + index * row.strides[j][0];
}

// Elements begin, begin + kThreads, ... of the row, one at a time.
template <class Update, class Rule, class RowT>
__device__ __forceinline__ int update_elements(const Rule& rule, const RowT& row, uint32_t begin,
                                               uint32_t end) {
  using S = typename Update::Storage;
  int at_bound = 0;
  for (uint32_t i = begin; i < end; i += kThreads) {
    typename Number<S>::Value x[Update::kOperands] = {};
#pragma unroll
    for (int j = 0; j < Update::kOperands; ++j) {
      if (rule.operands >> j & 1)
        x[j] = widened(static_cast<const S*>(row.data[j])[place(row, j, i)]);
    }
    at_bound += rule.apply(x);
#pragma unroll
    for (int j = 0; j < Update::kOperands; ++j) {
      if ((rule.operands & Update::kWritten) >> j & 1) {
        narrow(x[j], &static_cast<S*>(row.data[j])[place(row, j, i)]);
      }
    }
  }
  return at_bound;
}

// Vectors at begin, begin + a vector for each thread, ..., before `end`.
template <class Update, class Rule, class RowT>
__device__ __forceinline__ int update_vectors(const Rule& rule, const RowT& row, uint32_t begin,
                                              uint32_t end) {
  using S = typename Update::Storage;
  constexpr int kOperands = Update::kOperands, kSize = Vector<S>::kSize;
  int at_bound = 0;
  for (uint32_t at = begin; at < end; at += kThreads * kSize) {
    Vector<S> x[kOperands] = {};
#pragma unroll
    for (int j = 0; j < kOperands; ++j) {
      if (rule.operands >> j & 1) {
        x[j] = *reinterpret_cast<const Vector<S>*>(static_cast<const S*>(row.data[j]) + at);
      }
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      typename Number<S>::Value of_element[kOperands];
#pragma unroll
      for (int j = 0; j < kOperands; ++j) of_element[j] = widened(x[j].values[i]);
      at_bound += rule.apply(of_element);
#pragma unroll
      for (int j = 0; j < kOperands; ++j) narrow(of_element[j], &x[j].values[i]);
    }
#pragma unroll
    for (int j = 0; j < kOperands; ++j) {
      if ((rule.operands & Update::kWritten) >> j & 1) {
        *reinterpret_cast<Vector<S>*>(static_cast<S*>(row.data[j]) + at) = x[j];
      }
    }
  }
  return at_bound;
}

template <class Update, class RowT, size_t kBytes>
__global__ void __launch_bounds__(kThreads)
    update_tensors(const Table<RowT, kBytes> __grid_constant__ table,
                   const Update __grid_constant__ update) {
  using S = typename Update::Storage;
  constexpr uint32_t kSize = Vector<S>::kSize;
  const int32_t block = static_cast<int32_t>(blockIdx.x);
  const int found = table.find(block);
  const RowT& row = table.rows[found];
  const auto rule = update.of(row, block == table.first_block[found] && threadIdx.x == 0);

  const uint32_t begin = (block - table.first_block[found]) * kElementsOfBlock<S>;
  const uint32_t end = min(begin + kElementsOfBlock<S>, row.elements);
  uint32_t whole = begin;  // before it, vectors
  int at_bound = 0;
  if constexpr (!RowT::kStrided) {
    if (row.aligned) {
      whole = end - (end - begin) % kSize;
      at_bound = update_vectors<Update>(rule, row, begin + threadIdx.x * kSize, whole);
    }
  }
  at_bound += update_elements<Update>(rule, row, whole + threadIdx.x, end);
  if constexpr (Update::kCounts) add_of_block(at_bound, update.count);
}

template <int kOperands>
void fill(const Row& row, FlatRow<kOperands>* filled) {
  filled->step = row.step;
  filled->factors = row.factors;
  filled->elements = static_cast<uint32_t>(row.elements);
  filled->aligned = true;
  for (int j = 0; j < kOperands; ++j) {
    filled->data[j] = row.data[j];
    if (reinterpret_cast<uintptr_t>(row.data[j]) % kVectorBytes != 0) filled->aligned = false;
  }
}

template <int kOperands>
void fill(const Row& row, StridedRow<kOperands>* filled) {
  fill(row, static_cast<FlatRow<kOperands>*>(filled));
  filled->dims = row.dims;
  for (int d = 0; d < row.dims; ++d) {
    filled->sizes[d] = static_cast<uint32_t>(row.sizes[d]);
    for (int j = 0; j < kOperands; ++j) filled->strides[j][d] = row.strides[j][d];
  }
}

// As many rows at a time as a table holds.
template <class RowT, size_t kBytes, class Update>
cudaError_t launch_rows(const std::vector<const Row*>& rows, const Update& update,
                        cudaStream_t stream) {
  using TableT = Table<RowT, kBytes>;
  static_assert(sizeof(TableT) + sizeof(Update) <= kBytes, "more than a kernel's arguments");
  constexpr int64_t kElements = kElementsOfBlock<typename Update::Storage>, kMaxBlocks = 1 << 30;
  TableT table;
  for (size_t next = 0; next < rows.size();) {
    int64_t blocks = 0;
    table.count = 0;
    while (next < rows.size() && table.count < TableT::kRows && blocks < kMaxBlocks) {
      const Row& row = *rows[next++];
      fill(row, &table.rows[table.count]);
      table.first_block[table.count++] = static_cast<int32_t>(blocks);
      blocks += std::max<int64_t>(1, (row.elements + kElements - 1) / kElements);  // 1: its step
    }
    FASTGEN_LAUNCH((update_tensors<Update, RowT, kBytes>), static_cast<unsigned>(blocks), kThreads,
                   0, stream, table, update);
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

// The rows of one dtype.
template <class Update>
cudaError_t launch_dtype(const Row* rows, int64_t row_count, Storage storage, const Update& update,
                         cudaStream_t stream) {
  constexpr int kOperands = Update::kOperands;
  std::vector<const Row*> flat, strided;
  for (int64_t i = 0; i < row_count; ++i) {
    if (rows[i].storage == storage) (rows[i].dims == 0 ? flat : strided).push_back(&rows[i]);
  }
  const bool few = flat.size() <= Table<FlatRow<kOperands>, kSmallArguments>::kRows;
  const auto launch_flat = few ? launch_rows<FlatRow<kOperands>, kSmallArguments, Update>
                               : launch_rows<FlatRow<kOperands>, kLargeArguments, Update>;
  const cudaError_t status = launch_flat(flat, update, stream);
  if (status != cudaSuccess) return status;
  return launch_rows<StridedRow<kOperands>, kLargeArguments>(strided, update, stream);
}

// All rows, each with the Update of its dtype that `make` gives for a Number.
template <class Make>
const char* launch_updates(const Row* rows, int64_t row_count, int64_t* count, void* stream,
                           const Make& make) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  cudaError_t status = cudaSuccess;
  if (count != nullptr) status = cudaMemsetAsync(count, 0, sizeof *count, on);
  const auto run = [&](Storage storage, auto number) {
    if (status == cudaSuccess) {
      status = launch_dtype(rows, row_count, storage, make(number), on);
    }
  };
  run(Storage::kFloat32, Number<float>());
  run(Storage::kFloat64, Number<double>());
  run(Storage::kBFloat16, Number<BFloat16>());
  run(Storage::kFloat16, Number<Float16>());
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace
}  // namespace cuda
}  // namespace fastgen
