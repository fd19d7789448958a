// Updates of many tensors, element by element: lists of tensors become segments of adjacent
// elements, and threads share the elements, not the tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/FunctionRef.h>

#include <optional>
#include <vector>

#include "update_rules.h"
#include "update_segment.h"

namespace fastgen {

// What an update calls one of its lists, and whether it writes into it.
struct Role {
  const char* name;
  bool is_written;
  bool any_float = false;  // also of other floating point types than the first list's
};

// The operands of one update of CPU tensors, collected and checked before anything is written.
class MultiTensor {
 public:
  // Of segments whose first operands are of type `type` and second ones of type `second`; returns
  // how many elements are at a bound.
  using Kernel = c10::function_ref<int64_t(at::ScalarType type, at::ScalarType second,
                                           const Segment*, int64_t segments)>;

  MultiTensor(const char* op, std::initializer_list<Role> roles);
  void reserve(size_t tensors);

  // One tensor of each list, null where the list is left out: of the first one's shape.
  void add(const at::Tensor* const (&operands)[kMostOperands]);
  // What almost all operands are, contiguous ordinary tensors of one dtype; nothing is added, and
  // false returned, if these are not.
  bool add_plain(const at::Tensor* const (&operands)[kMostOperands]);

  // Whether something was added whose memory is not simply its elements: a negated view, a subclass
  // with its own dispatch. It cannot run here; an op's kernel never gets one, a plan goes to the
  // op.
  bool is_foreign() const { return is_foreign_; }

  // A segment's own numbers; segments are in the order of `add`.
  double* own(size_t segment) { return segments_[segment].own; }

  // Runs the kernel over all elements, and moves the versions of what it writes on. The same bits
  // for any number of threads. The sum of what the kernel returned.
  int64_t run(Kernel kernel);

 private:
  struct Item {
    int64_t begin;  // elements in front of it
    at::ScalarType type, second;
    int layout;  // in layouts_; -1: every operand is dense, in one order
  };
  // Axes in the order of decreasing steps of the first operand, merged where all operands allow.
  struct Layout {
    std::vector<int64_t> sizes, steps[kMostOperands];
    bool is_adjacent[kMostOperands];  // in that order, without gaps
  };

  static Layout layout_of(const at::Tensor* const (&operands)[kMostOperands]);
  int64_t boundary(int64_t element) const;
  size_t item_of(int64_t element) const;
  int64_t run_range(int64_t begin, int64_t end, Kernel kernel) const;
  int64_t run_strided(size_t item, int64_t begin, int64_t end, Kernel kernel) const;
  Segment piece(size_t item, int64_t begin, int64_t end) const;
  int64_t item_size(size_t item, int operand) const;

  const char* op_;
  Role roles_[kMostOperands];
  int lists_;
  bool is_foreign_ = false;
  int64_t elements_ = 0;
  std::vector<Segment> segments_;
  std::vector<Item> items_;  // of the segments
  std::vector<Layout> layouts_;
  std::vector<c10::TensorImpl*> written_;
};

// A tensor of the list `role` beside the first list's tensor `first`: on one device, of the same
// shape and dtype.
void check_operand(const char* op, const Role& role, const at::Tensor& operand,
                   const Role& first_role, const at::Tensor& first);

// clip_weights_ of what was added, one list.
int64_t clip(const ClipSettings& settings, MultiTensor& weights);

// A list of an op that must hold as many tensors as its first list, or none if it may be left out.
void check_length(const char* op, const char* argument, size_t got, size_t wanted,
                  bool may_be_left_out = false);

// The number in a tensor of one element on the CPU, `otherwise` without one.
double number_in(const char* op, const char* argument, const std::optional<at::Tensor>& tensor,
                 double otherwise);

// Steps done so far, in float32 or float64 tensors of one element.
class StepCounters {
 public:
  void reserve(size_t tensors) { counters_.reserve(tensors); }
  void add(const char* op, const at::Tensor& step);
  size_t size() const { return counters_.size(); }
  bool is_foreign() const { return is_foreign_; }  // as of MultiTensor
  // One more; the new number.
  double count(size_t i);

 private:
  struct Counter {
    c10::TensorImpl* impl;
    void* number;
    bool is_double;
  };
  std::vector<Counter> counters_;
  bool is_foreign_ = false;
};

at::Tensor count_tensor(int64_t count);

// The member of a table that has one for each floating point type.
template <class Table>
const auto& of_type(const Table& table, at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return table.float64;
    case at::kBFloat16:
      return table.bfloat16;
    case at::kHalf:
      return table.float16;
    default:
      return table.float32;
  }
}

}  // namespace fastgen
