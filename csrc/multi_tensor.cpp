#include "multi_tensor.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>

#include "common/strided_rows.h"

namespace fastgen {
namespace {

using at::Tensor;

constexpr int64_t kGrain = 32768;  // elements a thread should have
constexpr int64_t kPiece = 512;    // elements of a strided tensor gathered at a time
constexpr int64_t kLine = 64;      // threads meet at multiples of this

bool is_update_type(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

// Axes of one element have no order and take no part in it.
bool same_order(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// Whether two elements may share memory: every axis must step over all that the axes of smaller
// steps reach.
bool may_overlap_itself(const Tensor& t) {
  if (t.numel() == 0 || t.unsafeGetTensorImpl()->is_non_overlapping_and_dense()) return false;
  std::vector<int64_t> axes(t.dim());
  std::iota(axes.begin(), axes.end(), 0);
  std::sort(axes.begin(), axes.end(),
            [&](int64_t a, int64_t b) { return t.stride(a) < t.stride(b); });
  int64_t reach = 0;
  for (int64_t d : axes) {
    if (t.size(d) == 1) continue;
    if (t.stride(d) <= reach) return true;
    reach += (t.size(d) - 1) * t.stride(d);
  }
  return false;
}

// An ordinary tensor: dense, on the CPU, of no subclass that has its own dispatch. Reading the keys
// at once, and storage without going through Tensor, takes 25 us off a step over 300 small tensors.
c10::DispatchKeySet plain_keys() {
  static const c10::DispatchKeySet keys = [] {
    const c10::InferenceMode off(false);
    return at::detail::empty_cpu({0}, at::kFloat).key_set();
  }();
  return keys;
}

bool is_plain(const c10::TensorImpl& impl) { return impl.key_set() == plain_keys(); }

// Keys beyond an ordinary tensor's; one made in inference mode has fewer.
bool is_foreign(const Tensor& t) {
  return (t.unsafeGetTensorImpl()->key_set().raw_repr() & ~plain_keys().raw_repr()) != 0;
}

void* data_of(const c10::TensorImpl& impl, bool is_written) {
  const c10::Storage& storage = impl.unsafe_storage();
  void* data = is_written ? storage.mutable_data() : const_cast<void*>(storage.data());
  return static_cast<char*>(data) + impl.storage_offset() * impl.dtype().itemsize();
}

bool same_sizes(at::IntArrayRef a, at::IntArrayRef b) {
  if (a.size() != b.size()) return false;
  for (size_t d = 0; d < a.size(); ++d) {
    if (a[d] != b[d]) return false;
  }
  return true;
}

template <class T>
void gather(const StridedRows& from, int64_t begin, int64_t end, void* buffer) {
  T* to = static_cast<T*>(buffer);
  for_each_run(from, begin, end, [&](int64_t offset, int64_t step, int64_t count, int64_t) {
    const T* at = static_cast<const T*>(from.data) + offset;
    for (int64_t i = 0; i < count; ++i) *to++ = at[i * step];
  });
}

template <class T>
void scatter(const void* buffer, const StridedRows& to, int64_t begin, int64_t end) {
  const T* from = static_cast<const T*>(buffer);
  for_each_run(to, begin, end, [&](int64_t offset, int64_t step, int64_t count, int64_t) {
    T* at = static_cast<T*>(to.data) + offset;
    for (int64_t i = 0; i < count; ++i) at[i * step] = *from++;
  });
}

// f with a null pointer of the integer that is as long as an element.
template <class F>
void of_size(int64_t bytes, F f) {
  if (bytes == 2) return f(static_cast<uint16_t*>(nullptr));
  if (bytes == 4) return f(static_cast<uint32_t*>(nullptr));
  f(static_cast<uint64_t*>(nullptr));
}

}  // namespace

void check_operand(const char* op, const Role& role, const Tensor& operand, const Role& first_role,
                   const Tensor& first) {
  TORCH_CHECK(operand.layout() == at::kStrided, "fastgen.", op, ": ", role.name,
              " must be dense, got a ", operand.layout(),
              " tensor; sparse ones are not supported, call to_dense()");
  TORCH_CHECK_VALUE(operand.device() == first.device(), "fastgen.", op, ": ", role.name,
                    " must be on one device, got ", operand.device(), " beside ", first.device(),
                    "; move them");
  TORCH_CHECK_TYPE(is_update_type(operand.scalar_type()), "fastgen.", op, ": ", role.name,
                   " must be float32, float64, bfloat16 or float16, got ", operand.scalar_type(),
                   "; leave such tensors out");
  TORCH_CHECK_TYPE(role.any_float || operand.scalar_type() == first.scalar_type(), "fastgen.", op,
                   ": ", role.name, " must have the dtypes of ", first_role.name, ", got ",
                   operand.scalar_type(), " for ", first.scalar_type(), "; convert them");
  TORCH_CHECK_VALUE(operand.sizes() == first.sizes(), "fastgen.", op, ": ", role.name,
                    " must have the shapes of ", first_role.name, ", got ", operand.sizes(),
                    " for ", first.sizes(), "; give both in the same order");
  TORCH_CHECK(!role.is_written || !may_overlap_itself(operand), "fastgen.", op, ": ", role.name,
              " must not overlap themselves, as of expand, got strides ", operand.strides(),
              " for shape ", operand.sizes(), "; clone them first");
}

MultiTensor::MultiTensor(const char* op, std::initializer_list<Role> roles)
    : op_(op), lists_(static_cast<int>(roles.size())) {
  std::copy(roles.begin(), roles.end(), roles_);
}

void MultiTensor::reserve(size_t tensors) {
  segments_.reserve(tensors);
  items_.reserve(tensors);
  written_.reserve(tensors * lists_);
}

bool MultiTensor::add_plain(const Tensor* const (&operands)[kMostOperands]) {
  const c10::TensorImpl& first = *operands[0]->unsafeGetTensorImpl();
  const at::ScalarType type = c10::typeMetaToScalarType(first.dtype());
  if (first.numel() == 0 || !is_update_type(type)) return false;
  for (int i = 0; i < lists_; ++i) {
    if (operands[i] == nullptr) continue;
    const c10::TensorImpl& impl = *operands[i]->unsafeGetTensorImpl();
    if (!is_plain(impl) || impl.dtype() != first.dtype() || !impl.is_contiguous() ||
        !same_sizes(impl.sizes(), first.sizes())) {
      return false;
    }
  }
  Segment& segment = segments_.emplace_back();
  segment.count = first.numel();
  for (int i = 0; i < lists_; ++i) {
    if (operands[i] == nullptr) continue;
    c10::TensorImpl* impl = operands[i]->unsafeGetTensorImpl();
    segment.operands[i] = data_of(*impl, roles_[i].is_written);
    if (roles_[i].is_written) written_.push_back(impl);
  }
  items_.push_back({elements_, type, type, -1});
  elements_ += segment.count;
  return true;
}

void MultiTensor::add(const Tensor* const (&operands)[kMostOperands]) {
  if (add_plain(operands)) return;
  const Tensor& first = *operands[0];
  TORCH_CHECK_VALUE(first.device().is_cpu(), "fastgen.", op_, ": ", roles_[0].name,
                    " must be on one device, got ", first.device(), " beside cpu; move them");
  Segment segment{};
  bool is_contiguous = true, is_dense = true;
  for (int i = 0; i < lists_; ++i) {
    if (operands[i] == nullptr) continue;
    const Tensor& operand = *operands[i];
    check_operand(op_, roles_[i], operand, roles_[0], first);
    if (fastgen::is_foreign(operand)) {
      is_foreign_ = true;
      return;
    }
    is_contiguous = is_contiguous && operand.is_contiguous();
    is_dense = is_contiguous ||
               (is_dense && operand.unsafeGetTensorImpl()->is_non_overlapping_and_dense() &&
                same_order(operand, first));
    if (roles_[i].is_written) {
      segment.operands[i] = operand.mutable_data_ptr();
      written_.push_back(operand.unsafeGetTensorImpl());
    } else {
      segment.operands[i] = const_cast<void*>(operand.const_data_ptr());
    }
  }
  segment.count = first.numel();
  if (segment.count == 0) {  // without memory, and null would mean left out
    static char nothing;
    for (int i = 0; i < lists_; ++i) segment.operands[i] = operands[i] ? &nothing : nullptr;
  }
  int layout = -1;
  if (!is_dense && segment.count > 0) {
    layout = static_cast<int>(layouts_.size());
    layouts_.push_back(layout_of(operands));
  }
  const Tensor& second = operands[1] == nullptr ? first : *operands[1];
  segments_.push_back(segment);
  items_.push_back({elements_, first.scalar_type(), second.scalar_type(), layout});
  elements_ += segment.count;
}

MultiTensor::Layout MultiTensor::layout_of(const Tensor* const (&operands)[kMostOperands]) {
  const Tensor& first = *operands[0];
  std::vector<int64_t> axes;
  for (int64_t d = 0; d < first.dim(); ++d) {
    if (first.size(d) != 1) axes.push_back(d);
  }
  std::stable_sort(axes.begin(), axes.end(),
                   [&](int64_t a, int64_t b) { return first.stride(a) > first.stride(b); });
  Layout layout;
  for (int64_t d : axes) {
    bool merges = !layout.sizes.empty();
    for (int i = 0; i < kMostOperands && merges; ++i) {
      if (operands[i] == nullptr) continue;
      merges = layout.steps[i].back() == operands[i]->stride(d) * first.size(d);
    }
    if (merges) {
      layout.sizes.back() *= first.size(d);
    } else {
      layout.sizes.push_back(first.size(d));
    }
    for (int i = 0; i < kMostOperands; ++i) {
      if (operands[i] == nullptr) continue;
      if (!merges) layout.steps[i].push_back(0);
      layout.steps[i].back() = operands[i]->stride(d);
    }
  }
  for (int i = 0; i < kMostOperands; ++i) {
    bool is_adjacent = operands[i] != nullptr;
    int64_t step = 1;
    for (size_t d = layout.sizes.size(); d-- > 0 && is_adjacent;) {
      is_adjacent = layout.steps[i][d] == step;
      step *= layout.sizes[d];
    }
    layout.is_adjacent[i] = is_adjacent;
  }
  return layout;
}

int64_t MultiTensor::run(Kernel kernel) {
  TORCH_CHECK(!is_foreign_, "fastgen.", op_, ": tensors must be ordinary ones here");
  for (c10::TensorImpl* impl : written_) impl->bump_version();
  if (elements_ == 0) return 0;
  std::atomic<int64_t> total{0};
  at::parallel_for(0, elements_, kGrain, [&](int64_t begin, int64_t end) {
    total += run_range(boundary(begin), boundary(end), kernel);
  });
  return total;
}

size_t MultiTensor::item_of(int64_t element) const {
  const auto after = std::upper_bound(items_.begin(), items_.end(), element,
                                      [](int64_t at, const Item& item) { return at < item.begin; });
  return after - items_.begin() - 1;
}

// Inside a tensor a thread begins at a whole cache line of it, if its data does.
int64_t MultiTensor::boundary(int64_t element) const {
  if (element == 0 || element == elements_) return element;
  const int64_t begin = items_[item_of(element)].begin;
  return begin + (element - begin) / kLine * kLine;
}

int64_t MultiTensor::run_range(int64_t begin, int64_t end, Kernel kernel) const {
  int64_t total = 0;
  size_t item = begin == 0 ? 0 : item_of(begin);
  while (item < items_.size() && items_[item].begin < end) {
    const Item& here = items_[item];
    const int64_t from = std::max(begin - here.begin, int64_t{0});
    const int64_t to = std::min(end - here.begin, segments_[item].count);
    if (here.layout >= 0) {
      total += run_strided(item++, from, to, kernel);
    } else if (from > 0 || to < segments_[item].count) {
      const Segment part = piece(item++, from, to);
      total += kernel(here.type, here.second, &part, 1);
    } else {
      const size_t first = item;
      do {
        ++item;
      } while (item < items_.size() && items_[item].layout < 0 && items_[item].type == here.type &&
               items_[item].second == here.second &&
               items_[item].begin + segments_[item].count <= end);
      total += kernel(here.type, here.second, &segments_[first], item - first);
    }
  }
  return total;
}

int64_t MultiTensor::item_size(size_t item, int operand) const {
  return c10::elementSize(operand == 1 ? items_[item].second : items_[item].type);
}

Segment MultiTensor::piece(size_t item, int64_t begin, int64_t end) const {
  Segment part = segments_[item];
  for (int i = 0; i < lists_; ++i) {
    if (part.operands[i] == nullptr) continue;
    part.operands[i] = static_cast<char*>(part.operands[i]) + begin * item_size(item, i);
  }
  part.count = end - begin;
  return part;
}

int64_t MultiTensor::run_strided(size_t item, int64_t begin, int64_t end, Kernel kernel) const {
  const Layout& layout = layouts_[items_[item].layout];
  StridedRows rows[kMostOperands];
  for (int i = 0; i < lists_; ++i) {
    if (segments_[item].operands[i] == nullptr || layout.is_adjacent[i]) continue;
    rows[i].data = segments_[item].operands[i];
    rows[i].axes = static_cast<int>(layout.sizes.size());
    std::copy(layout.sizes.begin(), layout.sizes.end(), rows[i].sizes);
    std::copy(layout.steps[i].begin(), layout.steps[i].end(), rows[i].steps);
  }
  alignas(64) char buffers[kMostOperands][kPiece * sizeof(double)];
  int64_t total = 0;
  for (int64_t at = begin, last; at < end; at = last) {
    last = std::min(at + kPiece, end);
    Segment part = piece(item, at, last);
    for (int i = 0; i < lists_; ++i) {
      if (part.operands[i] == nullptr || layout.is_adjacent[i]) continue;
      part.operands[i] = buffers[i];
      of_size(item_size(item, i), [&](auto* type) {
        gather<std::remove_pointer_t<decltype(type)>>(rows[i], at, last, buffers[i]);
      });
    }
    total += kernel(items_[item].type, items_[item].second, &part, 1);
    for (int i = 0; i < lists_; ++i) {
      if (part.operands[i] == nullptr || layout.is_adjacent[i] || !roles_[i].is_written) continue;
      of_size(item_size(item, i), [&](auto* type) {
        scatter<std::remove_pointer_t<decltype(type)>>(buffers[i], rows[i], at, last);
      });
    }
  }
  return total;
}

void check_length(const char* op, const char* argument, size_t got, size_t wanted,
                  bool may_be_left_out) {
  TORCH_CHECK_VALUE(got == wanted || (may_be_left_out && got == 0), "fastgen.", op, ": ", argument,
                    " must hold ", wanted, " tensors, got ", got, "; give them in the same order");
}

double number_in(const char* op, const char* argument, const std::optional<Tensor>& tensor,
                 double otherwise) {
  if (!tensor.has_value()) return otherwise;
  TORCH_CHECK_VALUE(tensor->numel() == 1 && tensor->device().is_cpu(), "fastgen.", op, ": ",
                    argument, " must be a tensor of one element on the parameters' device, got ",
                    tensor->sizes(), " on ", tensor->device(), "; move it");
  return tensor->item().toDouble();
}

void StepCounters::add(const char* op, const Tensor& step) {
  c10::TensorImpl* impl = step.unsafeGetTensorImpl();
  TORCH_CHECK_VALUE(step.numel() == 1 && step.device().is_cpu() && step.layout() == at::kStrided,
                    "fastgen.", op, ": steps must be dense tensors of one element on the CPU, got ",
                    step.sizes(), " on ", step.device(), "; use torch.zeros(())");
  const bool is_double = step.scalar_type() == at::kDouble;
  TORCH_CHECK_TYPE(is_double || step.scalar_type() == at::kFloat, "fastgen.", op,
                   ": steps must be float32, got ", step.scalar_type(), "; use torch.zeros(())");
  if (fastgen::is_foreign(step)) {
    is_foreign_ = true;
    return;
  }
  counters_.push_back({impl, data_of(*impl, true), is_double});
}

double StepCounters::count(size_t i) {
  const Counter& counter = counters_[i];
  counter.impl->bump_version();
  if (counter.is_double) return *static_cast<double*>(counter.number) += 1;
  return *static_cast<float*>(counter.number) += 1;
}

Tensor count_tensor(int64_t count) {
  Tensor out = at::detail::empty_cpu({}, at::kLong);
  *out.mutable_data_ptr<int64_t>() = count;
  return out;
}

}  // namespace fastgen
