// Runs sampling programs on the CPU: images in groups, groups over threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "common/isa.h"
#include "engine/sampler.h"

namespace fastgen {
namespace engine {

// How weights are stored; kBFloat16 computes in float32.
enum class Storage { kFloat32, kFloat64, kBFloat16 };

// An instruction as Python gives it: `plain` without its pointers.
struct InstructionSource {
  Instruction plain = {};
  bool critical = false;
  std::vector<int32_t> table;
  std::vector<Column> columns;
  std::vector<double> weight, bias;
  std::vector<CodeStep> code;
  std::vector<double> consts;  // (count, const_step)
  std::vector<int32_t> pick;   // (nch, 2)
  std::vector<double> lookup, row_weight, row_bias;
  std::vector<Column> sides;
  std::vector<Pair> pairs;
};

// Cells whose values are known before the first step: values (slots, nch) for every image, or
// elements (slots, nch) of the image's condition.
struct StaticCells {
  std::vector<int32_t> slots;
  int64_t width, nch;
  std::vector<double> values;
  int64_t source = -1;  // of the conditions; -1: constant
  std::vector<int64_t> elements;
};

struct ProgramSource {
  int64_t steps, parameters, codes, floats, zero_width;
  std::vector<InstructionSource> instructions;
  std::vector<Entry> entries;
  // What a second thread may run ahead, and how much of it must be done before each step; or none.
  std::vector<Tile> queue;
  std::vector<int32_t> needed;
  std::vector<int32_t> step_start;          // (steps + 1)
  std::vector<int32_t> param, cell, index;  // (draws, 3), (draws, codes a draw, 3), (draws, codes)
  int64_t codes_a_draw;
  std::vector<StaticCells> statics;
};

struct Condition {
  const void* values;  // (n, elements), in the arithmetic's type
  int64_t elements;
};

struct DrawRequest {
  Likelihood likelihood;
  const double* uniforms;  // (n, uniforms_a_code, codes)
  int64_t uniforms_a_code;
};

struct RunRequest {
  int64_t n, group, threads;
  int64_t* codes;  // (n, codes)
  std::vector<Condition> conditions;
  const DrawRequest* draw;  // null: every code is read
  const bool* known;        // (n, codes) or null
  void* params;             // (n, draws, parameters) in the arithmetic's type, or null
};

// The first NaN of the first sample that met one; sample -1: none.
struct NanFound {
  int64_t sample = -1, draw = -1;
};

// A group of images whose steps are run one by one.
class Stepper {
 public:
  virtual ~Stepper() = default;
  virtual void advance(int64_t step, void* params) = 0;      // (n, draws of the step, parameters)
  virtual void put(int64_t step, const int64_t* codes) = 0;  // (n, draws, codes a draw)
};

// A program with packed weights. Immutable, so any number of threads may run it at once.
class Engine {
 public:
  virtual ~Engine() = default;
  // Threads live as long as the call. `poll` is called on this one about every 50 ms with the
  // fraction done; what it throws stops the threads and is thrown on.
  virtual NanFound run(const RunRequest&, const std::function<void(double)>& poll) const = 0;
  virtual std::unique_ptr<Stepper> stepper(int64_t n, const std::vector<Condition>&) const = 0;
  virtual int64_t weight_bytes() const = 0;
  virtual int64_t table_bytes() const = 0;
};

std::unique_ptr<Engine> make_engine(ProgramSource, Storage, Isa);

}  // namespace engine
}  // namespace fastgen
