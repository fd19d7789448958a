#include "vq_lookup.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>

#include "vq_search.h"

namespace fastgen {
namespace {

using at::Tensor;

// Multiply-adds a thread should have: below this, waking another costs more than it brings.
constexpr int64_t kGrain = 1 << 19;

VqStorage storage_of(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return kVqFloat32;
    case at::kDouble:
      return kVqFloat64;
    case at::kBFloat16:
      return kVqBFloat16;
    case at::kHalf:
      return kVqFloat16;
    default:
      TORCH_CHECK_TYPE(false, "fastgen.", op, ": x must be floating point, got ", x.scalar_type());
  }
}

Tensor uninitialised(int64_t bytes) { return at::empty({bytes}, at::kByte); }

template <class T>
const VqSearchKernels<T>& kernels_of() {
  if constexpr (sizeof(T) == sizeof(double)) return FASTGEN_KERNELS(vq_search).float64;
  if constexpr (sizeof(T) == sizeof(float)) return FASTGEN_KERNELS(vq_search).float32;
}

// A codebook and the memory of its packed form, which all heads use in turn.
template <class T>
class Packed {
 public:
  Packed(const VqShape& shape, bool cosine, bool filter) : kernels_(kernels_of<T>()) {
    const int64_t columns = (shape.codes + kernels_.panel_columns - 1) / kernels_.panel_columns *
                            kernels_.panel_columns;
    codes_.codes = shape.codes;
    codes_.values = shape.values;
    codes_.cosine = cosine;
    codes_.center = take<T>(shape.values);
    codes_.bias = take<T>(columns);
    codes_.mark = take<T>(columns);
    codes_.places = take<int64_t>(vq_places(shape.codes));
    codes_.panels = take<T>(columns * shape.values);
    if (filter) {
      codes_.pairs = take<uint32_t>(columns * ((shape.values + 1) / 2));
      codes_.lost = take<T>(columns);
    }
    if (cosine) normalised_ = take<T>(shape.codes * shape.values);
  }

  const VqCodes<T>& pack(const T* codebook) {
    const int64_t values = codes_.values, count = codes_.codes;
    codes_.given = codebook;
    if (codes_.cosine) {
      at::parallel_for(0, count, grain(values), [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          std::copy_n(codebook + k * values, values, normalised_ + k * values);
          kernels_.normalise(normalised_ + k * values, values);
        }
      });
      codes_.given = normalised_;
    }
    kernels_.prepare(codes_);
    const int64_t panels = (count + kernels_.panel_columns - 1) / kernels_.panel_columns;
    at::parallel_for(0, panels, grain(values * kernels_.panel_columns),
                     [&](int64_t begin, int64_t end) { kernels_.pack(codes_, begin, end); });
    kernels_.drop_duplicates(codes_);
    kernels_.measure(codes_);
    return codes_;
  }

 private:
  // Units of `values` copied and squared that make a thread's share.
  static int64_t grain(int64_t values) { return std::max<int64_t>(1, (1 << 16) / values); }

  template <class Field>
  Field* take(int64_t count) {
    memory_.push_back(uninitialised(count * sizeof(Field)));
    return static_cast<Field*>(memory_.back().mutable_data_ptr());
  }

  const VqSearchKernels<T>& kernels_;
  VqCodes<T> codes_{};
  T* normalised_ = nullptr;
  std::vector<Tensor> memory_;
};

// All rows of a head, block by block; threads take the next block when they are done with one.
template <class T>
void search(const VqCodes<T>& codes, const VqRows<T>& rows, int64_t count) {
  const VqSearchKernels<T>& kernels = kernels_of<T>();
  const double work = static_cast<double>(count) * codes.values * codes.codes;
  const int64_t useful =
      static_cast<int64_t>(std::min<double>(at::get_num_threads(), 1 + work / kGrain));
  const int64_t share = (count + useful - 1) / useful;
  const int64_t block = std::min(kernels.block_rows(codes.values), (share + 5) / 6 * 6);
  const int64_t blocks = (count + block - 1) / block;
  std::atomic<int64_t> next{0};
  std::atomic<bool> filters{codes.pairs != nullptr};
  VqCodes<T> unfiltered = codes;
  unfiltered.pairs = nullptr;
  at::parallel_for(0, std::min(useful, blocks), 1, [&](int64_t, int64_t) {
    const Tensor scratch = uninitialised(kernels.scratch_bytes(block, codes.values));
    for (int64_t b; (b = next.fetch_add(1)) < blocks;) {
      const int64_t begin = b * block, end = std::min(count, begin + block);
      const bool filtered = filters;
      const int64_t again = kernels.search(filtered ? codes : unfiltered, rows, begin, end,
                                           scratch.mutable_data_ptr());
      // A second pass costs what the filter saves on two rows. The results are the same.
      if (filtered && 4 * again > end - begin) filters = false;
    }
  });
}

// On Zen 4 from 1.1 (8 Gaussian values, 16384 codes) and 1.5 (256 uniform values) to 1.9 times the
// speed (rows near their codes). With fewer values codes are so close that too many have to be
// compared again, and for few rows the pairs cost more to pack than they save.
bool filter_pays(const VqShape& shape) {
  return shape.values >= 8 && shape.codes >= 64 && shape.rows >= 64;
}

template <class T>
void lookup(const VqLookup& self, const Tensor& x, const Tensor& codebook, const VqShape& shape) {
  const bool filter = sizeof(T) == sizeof(float) && multiplies_bfloat16() &&
                      self.filter.value_or(filter_pays(shape));
  Packed<T> packed(shape, self.cosine, filter);
  VqRows<T> rows{};
  rows.x = strided_rows(x, shape);
  rows.storage = storage_of(self.op, x);
  rows.heads = shape.heads;
  rows.inner = shape.inner;
  if (self.mask.has_value()) rows.mask = static_cast<const bool*>(self.mask->const_data_ptr());
  rows.indices = static_cast<int64_t*>(self.indices.mutable_data_ptr());
  if (self.quantized.has_value()) {
    rows.quantized = strided_rows(*self.quantized, shape);
    rows.commitment = static_cast<T*>(self.commitment->mutable_data_ptr());
  }
  const auto at_head = [&](const Tensor& t, void* data, int64_t head) {
    return static_cast<char*>(data) + head * head_step(t, shape) * t.element_size();
  };
  VqRows<T> of_head = rows;
  for (int64_t g = 0; g < shape.heads; ++g) {
    of_head.x.data = at_head(x, rows.x.data, g);
    of_head.indices = rows.indices + shape.index_at(g, 0);
    if (self.quantized.has_value()) {
      of_head.quantized.data = at_head(*self.quantized, rows.quantized.data, g);
      of_head.commitment = rows.commitment + shape.index_at(g, 0);
    }
    const T* codes = static_cast<const T*>(codebook.const_data_ptr());
    search(packed.pack(codes + g * shape.codes * shape.values), of_head, shape.rows);
  }
}

}  // namespace

void VqLookup::run(const Tensor& x, const Tensor& codebook, const VqShape& shape) const {
  if (shape.rows == 0) return;
  const auto type = vq_compute_type(op, x, codebook);
  const Tensor codes = codebook.to(type).contiguous();
  if (type == at::kDouble) {
    lookup<double>(*this, x, codes, shape);
  } else {
    lookup<float>(*this, x, codes, shape);
  }
}

at::ScalarType vq_compute_type(const char* op, const Tensor& x, const Tensor& codebook) {
  for (const Tensor& t : {x, codebook}) storage_of(op, t);
  const bool is_double = x.scalar_type() == at::kDouble || codebook.scalar_type() == at::kDouble;
  return is_double ? at::kDouble : at::kFloat;
}

Tensor vq_empty_indices(const Tensor& x, const VqShape& shape) {
  auto sizes = x.sizes().vec();
  sizes.erase(sizes.begin() + shape.dim);
  return at::empty(sizes, x.options().dtype(at::kLong));
}

}  // namespace fastgen
