// A lowered sampling program as the engine and its kernels see it: fastgen/sampling/program.py with
// weights packed and values converted. Plain data; who made it owns what the pointers point to.
#pragma once

#include <cstdint>

namespace fastgen {
namespace engine {

enum class Kind : int32_t { kLinear, kMap, kGather, kLookup, kRow, kDot, kMix, kAttention };
enum class Epilogue : int32_t { kNone, kRelu, kGate, kGateBoth, kCode };

#define FASTGEN_ROW_FUNCTIONS(X) \
  X(softmax)                     \
  X(log_softmax)                 \
  X(layer_norm)                  \
  X(sum)                         \
  X(mean)                        \
  X(amax)                        \
  X(amin)                        \
  X(prod)                        \
  X(variance)
#define FASTGEN_UNARY(X) \
  X(copy)                \
  X(relu)                \
  X(elu)                 \
  X(tanh)                \
  X(sigmoid)             \
  X(exp)                 \
  X(expm1)               \
  X(log)                 \
  X(log1p)               \
  X(sqrt)                \
  X(rsqrt)               \
  X(reciprocal)          \
  X(abs)                 \
  X(neg)                 \
  X(sign)                \
  X(floor)               \
  X(ceil)                \
  X(round)               \
  X(sin)                 \
  X(cos)                 \
  X(erf)
#define FASTGEN_BINARY(X) \
  X(add)                  \
  X(sub)                  \
  X(mul)                  \
  X(div)                  \
  X(maximum)              \
  X(minimum)              \
  X(pow)                  \
  X(eq)                   \
  X(ne)                   \
  X(lt)                   \
  X(le)                   \
  X(gt)                   \
  X(ge)
#define FASTGEN_TERNARY(X) X(where)

#define FASTGEN_ENUMERATOR(name) k_##name,
enum class RowFunction : int32_t { FASTGEN_ROW_FUNCTIONS(FASTGEN_ENUMERATOR) kCount };
enum class Pointwise : int32_t {
  FASTGEN_UNARY(FASTGEN_ENUMERATOR) FASTGEN_BINARY(FASTGEN_ENUMERATOR)
      FASTGEN_TERNARY(FASTGEN_ENUMERATOR) kCount
};
#undef FASTGEN_ENUMERATOR

struct Column {
  int64_t width;  // scalars between images
  int32_t channel, count;
  bool broadcast;
};

struct Argument {
  enum Source : int32_t { kAcc, kOperand, kConst, kTemporary };
  Source source;
  int32_t index, channel;
};

// One line of an expression's code.
struct CodeStep {
  Pointwise function;
  int32_t result;  // a temporary; -1: the cell that is written; -1 - k: the k-th side
  Argument arguments[3];
};

// Consecutive taps that are read as one span: a single tap where it lies, or several narrow ones
// that are copied side by side first.
struct TapRun {
  int32_t column, columns;
  int64_t length;
};

// Adjacent channels a gather copies.
struct CopyRun {
  int32_t column, channel, out, count;
};

// Attention reads scale * (query . key) of `pairs`; rows of its table are (out, query, first pair,
// pairs), columns query, key and value.
struct Pair {
  int32_t key, value;
};

struct Instruction {
  Kind kind;
  const int32_t* table;  // (rows, table_step)
  int64_t table_step;
  int64_t width;  // of the slots it writes
  int32_t nch;
  const Column* columns;
  int32_t column_count;

  // linear
  int32_t taps, adds, nacc, run_count;
  int64_t reduction;  // products a channel
  const TapRun* runs;
  Epilogue epilogue;
  int64_t second_width;
  const void* packed;  // see the kernel's pack()

  // linear: cells that its code computes besides; the last columns of the table
  const Column* sides;
  int32_t side_count;

  // linear and map
  const CodeStep* code;
  int32_t code_count, first_operand, temporaries;
  const void* consts;  // (count, const_step)
  int64_t const_step;

  // gather
  const CopyRun* copies;
  int32_t copy_count;

  // lookup
  const void* lookup;  // (lookup_rows, nch)
  int64_t lookup_rows;

  // row
  RowFunction function;
  double epsilon, correction;
  const void *row_weight, *row_bias;  // or null

  // attention
  const Pair* pairs;
  double scale;
};

struct Entry {
  int32_t instruction, first, rows;  // instruction -1: draws step `first`
};

// An entry of the queue for a second thread: it may run once `wait` steps are over.
struct Tile {
  Entry entry;
  int32_t wait;
};

// Rows an instruction works on at once, a multiple of every tile's height. Expressions keep their
// values in memory in between, so theirs are few.
constexpr int64_t kChunkRows = 72;
constexpr int64_t kCodeRows = 24;
// Elements that may be read, never written, behind the end of any array of values.
constexpr int64_t kSlack = 64;
inline int64_t padded(int64_t channels) { return (channels + kSlack - 1) / kSlack * kSlack; }

// What one thread works in. Sizes are the program's maxima.
struct Scratch {
  const void** pointers;  // [column + 2 + side][kChunkRows]
  void* narrow;           // [kChunkRows][length of the narrow taps]
  void* acc;              // [kCodeRows][padded nacc]
  void* temporaries;      // [temporary][kCodeRows][padded nch]
  void* row;              // [2][padded length of a row function]
  double* draw;           // [3][padded parameters]
};

// A group of images in flight: channel c of image b of a slot is arena[slot * count + b * width +
// c].
template <class T>
struct Images {
  T* arena;
  int64_t count;
  const Scratch* scratch;
};

}  // namespace engine
}  // namespace fastgen
