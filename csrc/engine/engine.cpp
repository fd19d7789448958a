#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>

#include "engine/memory.h"

namespace fastgen {
namespace engine {
namespace {

const SamplerKernels& kernels_of(Isa level) {
#if defined(__x86_64__) || defined(_M_X64)
  if (level == Isa::kAvx512) return isa_avx512::sampler_kernels;
  if (level == Isa::kAvx2) return isa_avx2::sampler_kernels;
#endif
  (void)level;
  return isa_default::sampler_kernels;
}

template <class T>
const SamplerFunctions<T>& functions_of(Isa level, Storage storage) {
  const SamplerKernels& kernels = kernels_of(level);
  if constexpr (std::is_same_v<T, double>) {
    return kernels.float64;
  } else {
    return storage == Storage::kBFloat16 ? kernels.bfloat16 : kernels.float32;
  }
}

// Narrow taps that follow each other become one run.
constexpr int32_t kNarrow = 16;

std::vector<TapRun> tap_runs(const std::vector<Column>& columns, int32_t taps) {
  std::vector<TapRun> runs;
  bool last_narrow = false;
  for (int32_t c = 0; c < taps; ++c) {
    const bool narrow = columns[c].count < kNarrow;
    if (narrow && last_narrow) {
      runs.back().columns += 1;
      runs.back().length += columns[c].count;
    } else {
      runs.push_back({c, 1, columns[c].count});
    }
    last_narrow = narrow;
  }
  return runs;
}

std::vector<CopyRun> copy_runs(const std::vector<int32_t>& pick) {
  std::vector<CopyRun> runs;
  for (int32_t c = 0; c < static_cast<int32_t>(pick.size()) / 2; ++c) {
    const int32_t column = pick[2 * c], channel = pick[2 * c + 1];
    if (!runs.empty() && runs.back().column == column &&
        runs.back().channel + runs.back().count == channel) {
      runs.back().count += 1;
    } else {
      runs.push_back({column, channel, c, 1});
    }
  }
  return runs;
}

// The sizes of a thread's scratch: maxima over the instructions.
struct ScratchSizes {
  int64_t columns = 0, narrow = 0, acc = 0, temporaries = 0, row = 0, draw = 0;

  void include(const InstructionSource& source, const std::vector<TapRun>& runs) {
    const Instruction& i = source.plain;
    columns = std::max(columns, static_cast<int64_t>(source.columns.size() + source.sides.size()));
    int64_t copied = 0, length = 0;
    for (const TapRun& run : runs) copied += run.columns > 1 ? run.length : 0;
    for (const Column& column : source.columns) length += column.count;
    narrow = std::max(narrow, copied * kChunkRows);
    acc = std::max(acc, padded(i.nacc) * kCodeRows);
    temporaries = std::max(temporaries, i.temporaries * padded(i.nch) * kCodeRows);
    if (i.kind == Kind::kAttention) {
      for (size_t at = 3; at < source.table.size(); at += 4) {
        length = std::max<int64_t>(length, source.table[at]);
      }
    }
    if (i.kind == Kind::kRow || i.kind == Kind::kAttention) {
      row = std::max(row, 2 * (padded(length) + kSlack));
    }
  }
};

template <class T>
struct OwnedScratch {
  std::vector<const void*> pointers;
  std::vector<T> narrow, acc, temporaries, row;
  std::vector<double> draw;
  Scratch plain;

  explicit OwnedScratch(const ScratchSizes& sizes)
      : pointers((sizes.columns + 2) * kChunkRows),
        narrow(sizes.narrow + kSlack),
        acc(sizes.acc + kSlack),
        temporaries(sizes.temporaries + kSlack),
        row(sizes.row + kSlack),
        draw(sizes.draw + kSlack),
        plain{pointers.data(),    narrow.data(), acc.data(),
              temporaries.data(), row.data(),    draw.data()} {}
  OwnedScratch(const OwnedScratch&) = delete;
};

// An instruction and what it points to.
template <class T>
struct OwnedInstruction {
  InstructionSource source;
  std::vector<TapRun> runs;
  std::vector<CopyRun> copies;
  std::vector<T> consts, lookup, row_weight, row_bias;
  Instruction plain;

  explicit OwnedInstruction(InstructionSource from) : source(std::move(from)) {
    plain = source.plain;
    runs = tap_runs(source.columns, plain.taps);
    copies = copy_runs(source.pick);
    const auto convert = [](std::vector<double>& values, std::vector<T>& to) -> const T* {
      if (values.empty()) return nullptr;
      to.assign(values.begin(), values.end());
      to.resize(values.size() + kSlack);
      values = {};
      return to.data();
    };
    plain.table = source.table.data();
    plain.columns = source.columns.data();
    plain.column_count = static_cast<int32_t>(source.columns.size());
    plain.sides = source.sides.data();
    plain.side_count = static_cast<int32_t>(source.sides.size());
    plain.pairs = source.pairs.data();
    plain.runs = runs.data();
    plain.run_count = static_cast<int32_t>(runs.size());
    plain.code = source.code.data();
    plain.code_count = static_cast<int32_t>(source.code.size());
    plain.copies = copies.data();
    plain.copy_count = static_cast<int32_t>(copies.size());
    plain.consts = convert(source.consts, consts);
    plain.lookup = convert(source.lookup, lookup);
    plain.row_weight = convert(source.row_weight, row_weight);
    plain.row_bias = convert(source.row_bias, row_bias);
  }
  OwnedInstruction(const OwnedInstruction&) = delete;
};

template <class T>
class EngineOf;

// How far two threads on one group are, by which they wait for each other.
struct Pace {
  alignas(64) std::atomic<int64_t> steps{0};  // over
  alignas(64) std::atomic<int64_t> tiles{0};  // done
  std::atomic<bool> left{false};              // the first thread gave up
};

// Until `counter` has reached `count`; false if told to stop. Spins for about 20 us and then lets
// others run: on a busy machine the other thread may be waiting for this core.
bool wait_for(const std::atomic<int64_t>& counter, int64_t count, const std::atomic<bool>& stop,
              const std::atomic<bool>& left) {
  for (int spins = 0; counter.load(std::memory_order_acquire) < count; ++spins) {
    if (stop.load(std::memory_order_relaxed) || left.load(std::memory_order_relaxed)) return false;
    if (spins < 500) {
#if defined(__x86_64__) || defined(_M_X64)
      __builtin_ia32_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }
  return true;
}

// The second thread of a pair, which ends with the first one's part.
class Joined {
 public:
  template <class F>
  Joined(Pace& pace, F work) : pace_(pace), thread_(work) {}
  ~Joined() {
    pace_.left = true;
    thread_.join();
  }

 private:
  Pace& pace_;
  std::thread thread_;
};

// One group of images in flight.
template <class T>
class Group {
 public:
  Group(const EngineOf<T>& engine, int64_t images);

  // Static cells for the `count` images from `first` on; count is at most what was reserved.
  void start(const std::vector<Condition>& conditions, int64_t first, int64_t count);
  // The instructions before a step's draws; false if told to stop. With a pace another thread runs
  // the queue, else this one does.
  bool advance(int64_t step, const std::atomic<bool>* stop, Pace* pace = nullptr);
  // The other thread's part.
  void run_queue(Pace& pace, const std::atomic<bool>& stop, const Scratch& scratch);

  const T* parameters(int64_t draw, int64_t image) const {
    const int32_t* at = &engine_.program().param[3 * draw];
    return images_.arena + at[0] * images_.count + image * at[1] + at[2];
  }
  void put(int64_t draw, int64_t code, int64_t image, int64_t value) {
    const ProgramSource& program = engine_.program();
    const int32_t* at = &program.cell[3 * (draw * program.codes_a_draw + code)];
    images_.arena[at[0] * images_.count + image * at[1] + at[2]] = static_cast<T>(value);
  }
  int64_t count() const { return images_.count; }
  const Scratch& scratch() const { return scratch_.plain; }

 private:
  const EngineOf<T>& engine_;
  OwnedScratch<T> scratch_;
  Memory arena_;
  Images<T> images_;
  int64_t tiles_ = 0;  // of the queue, done by this thread
};

// What the threads of one run share.
struct Shared {
  std::atomic<int64_t> next_group{0}, done{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable finished;
  int64_t running = 0;
  NanFound nan;
  std::exception_ptr error;

  // Samples from here on are of no more interest.
  bool is_past_nan(int64_t sample) {
    std::lock_guard<std::mutex> lock(mutex);
    return nan.sample >= 0 && sample > nan.sample;
  }
  void found(const NanFound& other) {
    std::lock_guard<std::mutex> lock(mutex);
    if (other.sample >= 0 && (nan.sample < 0 || other.sample < nan.sample)) nan = other;
  }
};

template <class T>
class StepperOf : public Stepper {
 public:
  StepperOf(const EngineOf<T>& engine, int64_t n, const std::vector<Condition>& conditions)
      : engine_(engine), group_(engine, n) {
    group_.start(conditions, 0, n);
  }

  void advance(int64_t step, void* params) override {
    group_.advance(step, nullptr);
    const ProgramSource& program = engine_.program();
    T* to = static_cast<T*>(params);
    for (int64_t b = 0; b < group_.count(); ++b) {
      for (int64_t d = program.step_start[step]; d < program.step_start[step + 1]; ++d) {
        to = std::copy_n(group_.parameters(d, b), program.parameters, to);
      }
    }
  }

  void put(int64_t step, const int64_t* codes) override {
    const ProgramSource& program = engine_.program();
    for (int64_t b = 0; b < group_.count(); ++b) {
      for (int64_t d = program.step_start[step]; d < program.step_start[step + 1]; ++d) {
        for (int64_t c = 0; c < program.codes_a_draw; ++c) group_.put(d, c, b, *codes++);
      }
    }
  }

 private:
  const EngineOf<T>& engine_;
  Group<T> group_;
};

template <class T>
class EngineOf : public Engine {
 public:
  EngineOf(ProgramSource source, Storage storage, Isa level)
      : functions_(functions_of<T>(level, storage)), program_(std::move(source)) {
    table_bytes_ = static_cast<int64_t>(program_.entries.size() * sizeof(Entry));
    for (InstructionSource& instruction : program_.instructions) {
      table_bytes_ += static_cast<int64_t>(instruction.table.size() * sizeof(int32_t));
      instructions_.push_back(std::make_unique<OwnedInstruction<T>>(std::move(instruction)));
      sizes_.include(instructions_.back()->source, instructions_.back()->runs);
    }
    program_.instructions.clear();
    sizes_.draw = 3 * padded(program_.parameters);
    find_steps();
    pack_weights();
  }

  NanFound run(const RunRequest& request, const std::function<void(double)>& poll) const override;
  std::unique_ptr<Stepper> stepper(int64_t n,
                                   const std::vector<Condition>& conditions) const override {
    return std::make_unique<StepperOf<T>>(*this, n, conditions);
  }
  int64_t weight_bytes() const override { return weight_bytes_; }
  int64_t table_bytes() const override { return table_bytes_; }

  const ProgramSource& program() const { return program_; }
  const SamplerFunctions<T>& functions() const { return functions_; }
  const ScratchSizes& scratch_sizes() const { return sizes_; }
  const Instruction& instruction(int64_t i) const { return instructions_[i]->plain; }
  // Entries [first, second) come before the step's draws.
  std::pair<int64_t, int64_t> entries_of(int64_t step) const {
    return {step_begin_[step], step_end_[step]};
  }

 private:
  void find_steps();
  void pack_weights();
  void work(const RunRequest& request, int64_t groups, Shared& shared) const;
  bool run_group(const RunRequest& request, Group<T>& group, int64_t first, Shared& shared) const;
  bool run_steps(const RunRequest& request, Group<T>& group, int64_t first, Shared& shared,
                 Pace* pace) const;
  void draw_step(const RunRequest& request, Group<T>& group, int64_t first, int64_t step,
                 NanFound& nan) const;

  const SamplerFunctions<T>& functions_;
  ProgramSource program_;
  std::vector<std::unique_ptr<OwnedInstruction<T>>> instructions_;
  std::vector<int64_t> step_begin_, step_end_;
  ScratchSizes sizes_;
  Memory weights_;
  int64_t weight_bytes_ = 0, table_bytes_ = 0;
};

template <class T>
void EngineOf<T>::find_steps() {
  step_begin_.resize(program_.steps);
  step_end_.resize(program_.steps);
  int64_t begin = 0;
  for (int64_t e = 0; e < static_cast<int64_t>(program_.entries.size()); ++e) {
    const Entry& entry = program_.entries[e];
    if (entry.instruction >= 0) continue;
    step_begin_[entry.first] = begin;
    step_end_[entry.first] = e;
    begin = e + 1;
  }
}

// Weights lie in the order of their first use, those every step waits for before the others: then
// fetching ahead at an instruction's end brings the next one's.
template <class T>
void EngineOf<T>::pack_weights() {
  std::vector<int64_t> order;
  std::vector<bool> seen(instructions_.size());
  std::vector<Entry> entries = program_.entries;
  for (const Tile& tile : program_.queue) entries.push_back(tile.entry);
  for (bool critical : {true, false}) {
    for (const Entry& entry : entries) {
      if (entry.instruction < 0 || seen[entry.instruction]) continue;
      const OwnedInstruction<T>& instruction = *instructions_[entry.instruction];
      if (instruction.plain.kind != Kind::kLinear || instruction.source.critical != critical) {
        continue;
      }
      seen[entry.instruction] = true;
      order.push_back(entry.instruction);
    }
  }
  for (int64_t i : order) weight_bytes_ += functions_.packed_bytes(instructions_[i]->plain);
  weights_ = Memory(weight_bytes_ + (16 << 10));
  char* to = weights_.as<char>();
  for (int64_t i : order) {
    OwnedInstruction<T>& instruction = *instructions_[i];
    InstructionSource& source = instruction.source;
    functions_.pack(instruction.plain, source.weight.data(),
                    source.bias.empty() ? nullptr : source.bias.data(), to);
    instruction.plain.packed = to;
    to += functions_.packed_bytes(instruction.plain);
    source.weight = {};
    source.bias = {};
  }
}

template <class T>
Group<T>::Group(const EngineOf<T>& engine, int64_t images)
    : engine_(engine),
      scratch_(engine.scratch_sizes()),
      arena_((engine.program().floats * images + kSlack) * sizeof(T)),
      images_{arena_.as<T>(), images, &scratch_.plain} {}

template <class T>
void Group<T>::start(const std::vector<Condition>& conditions, int64_t first, int64_t count) {
  const ProgramSource& program = engine_.program();
  images_.count = count;
  tiles_ = 0;
  std::fill_n(images_.arena, program.zero_width * count, T(0));
  for (const StaticCells& cells : program.statics) {
    for (size_t p = 0; p < cells.slots.size(); ++p) {
      for (int64_t b = 0; b < count; ++b) {
        T* to = images_.arena + cells.slots[p] * count + b * cells.width;
        const int64_t at = static_cast<int64_t>(p) * cells.nch;
        if (cells.source < 0) {
          std::copy_n(&cells.values[at], cells.nch, to);
          continue;
        }
        const Condition& condition = conditions[cells.source];
        const T* values =
            static_cast<const T*>(condition.values) + (first + b) * condition.elements;
        for (int64_t c = 0; c < cells.nch; ++c) to[c] = values[cells.elements[at + c]];
      }
    }
  }
}

template <class T>
bool Group<T>::advance(int64_t step, const std::atomic<bool>* stop, Pace* pace) {
  const auto [begin, end] = engine_.entries_of(step);
  const ProgramSource& program = engine_.program();
  const Entry* entries = program.entries.data();
  const auto run = engine_.functions().run;
  if (pace != nullptr) {
    if (!wait_for(pace->tiles, program.needed[step], *stop, pace->left)) return false;
  } else if (!program.queue.empty()) {
    for (; tiles_ < program.needed[step]; ++tiles_) {
      const Entry& entry = program.queue[tiles_].entry;
      run(engine_.instruction(entry.instruction), entry.first, entry.rows, images_);
    }
  }
  for (const Entry* entry = entries + begin; entry != entries + end; ++entry) {
    if (stop != nullptr && stop->load(std::memory_order_relaxed)) return false;
    run(engine_.instruction(entry->instruction), entry->first, entry->rows, images_);
  }
  return true;
}

template <class T>
void Group<T>::run_queue(Pace& pace, const std::atomic<bool>& stop, const Scratch& scratch) {
  const Images<T> images = {images_.arena, images_.count, &scratch};
  int64_t done = 0;
  for (const Tile& tile : engine_.program().queue) {
    if (!wait_for(pace.steps, tile.wait, stop, pace.left)) return;
    const Entry& entry = tile.entry;
    engine_.functions().run(engine_.instruction(entry.instruction), entry.first, entry.rows,
                            images);
    pace.tiles.store(++done, std::memory_order_release);
  }
}

template <class T>
void EngineOf<T>::draw_step(const RunRequest& request, Group<T>& group, int64_t first, int64_t step,
                            NanFound& nan) const {
  const int64_t in_draw = program_.codes_a_draw;
  std::vector<double> uniforms(request.draw ? request.draw->uniforms_a_code * in_draw : 0);
  std::vector<int64_t> drawn(in_draw);
  for (int64_t d = program_.step_start[step]; d < program_.step_start[step + 1]; ++d) {
    const int32_t* index = &program_.index[d * in_draw];
    for (int64_t b = 0; b < group.count(); ++b) {
      const int64_t image = first + b;
      const T* params = group.parameters(d, b);
      int64_t* codes = request.codes + image * program_.codes;
      if (request.params != nullptr) {
        const int64_t at = image * program_.step_start.back() + d;
        std::copy_n(params, program_.parameters,
                    static_cast<T*>(request.params) + at * program_.parameters);
      }
      const bool* known = request.known ? request.known + image * program_.codes : nullptr;
      bool any_free = request.draw != nullptr;
      if (any_free && known != nullptr) {
        any_free = false;
        for (int64_t c = 0; c < in_draw; ++c) any_free |= !known[index[c]];
      }
      if (any_free) {
        for (int64_t u = 0; u < request.draw->uniforms_a_code; ++u) {
          const double* from =
              request.draw->uniforms + (image * request.draw->uniforms_a_code + u) * program_.codes;
          for (int64_t c = 0; c < in_draw; ++c) uniforms[u * in_draw + c] = from[index[c]];
        }
        if (functions_.any_nan(params, program_.parameters)) {
          if (nan.sample < 0 || image < nan.sample) nan = {image, d};
          std::fill(drawn.begin(), drawn.end(), 0);
        } else {
          functions_.draw(request.draw->likelihood, params, program_.parameters, uniforms.data(),
                          in_draw, drawn.data(), group.scratch());
        }
        for (int64_t c = 0; c < in_draw; ++c) {
          if (known == nullptr || !known[index[c]]) codes[index[c]] = drawn[c];
        }
      }
      for (int64_t c = 0; c < in_draw; ++c) group.put(d, c, b, codes[index[c]]);
    }
  }
}

template <class T>
bool EngineOf<T>::run_group(const RunRequest& request, Group<T>& group, int64_t first,
                            Shared& shared) const {
  if (program_.queue.empty() || request.threads < 2) {
    return run_steps(request, group, first, shared, nullptr);
  }
  Pace pace;
  const OwnedScratch<T> scratch(sizes_);
  const Joined second(pace, [&] { group.run_queue(pace, shared.stop, scratch.plain); });
  return run_steps(request, group, first, shared, &pace);
}

template <class T>
bool EngineOf<T>::run_steps(const RunRequest& request, Group<T>& group, int64_t first,
                            Shared& shared, Pace* pace) const {
  NanFound nan;
  for (int64_t step = 0; step < program_.steps; ++step) {
    if (!group.advance(step, &shared.stop, pace)) return false;
    draw_step(request, group, first, step, nan);
    if (pace != nullptr) pace->steps.store(step + 1, std::memory_order_release);
    shared.done.fetch_add(group.count(), std::memory_order_relaxed);
    if (nan.sample == first) break;  // no earlier sample is left
  }
  shared.found(nan);
  return true;
}

template <class T>
void EngineOf<T>::work(const RunRequest& request, int64_t groups, Shared& shared) const {
  Group<T> group(*this, (request.n + groups - 1) / groups);
  while (true) {
    const int64_t g = shared.next_group.fetch_add(1);
    if (g >= groups) return;
    const int64_t first = request.n * g / groups, end = request.n * (g + 1) / groups;
    if (shared.is_past_nan(first)) return;
    group.start(request.conditions, first, end - first);
    if (!run_group(request, group, first, shared)) return;
  }
}

template <class T>
NanFound EngineOf<T>::run(const RunRequest& request,
                          const std::function<void(double)>& poll) const {
  Shared shared;
  // Two threads share a group where the program is made for it.
  const int64_t workers = program_.queue.empty() ? request.threads : request.threads / 2;
  const int64_t threads = std::max<int64_t>(1, std::min(workers, request.n));
  int64_t groups = (request.n + request.group - 1) / request.group;
  groups = (groups + threads - 1) / threads * threads;  // as many for each
  groups = std::min(groups, request.n);
  if (groups == 0) return shared.nan;
  std::vector<std::thread> pool;
  const auto join = [&] {
    for (std::thread& thread : pool) thread.join();
  };
  try {
    std::unique_lock<std::mutex> lock(shared.mutex);
    for (int64_t t = 0; t < threads; ++t) {
      pool.emplace_back([&] {
        std::exception_ptr error;
        try {
          work(request, groups, shared);
        } catch (...) {
          error = std::current_exception();
          shared.stop = true;
        }
        std::lock_guard<std::mutex> done(shared.mutex);
        if (error) shared.error = error;
        shared.running -= 1;
        shared.finished.notify_all();
      });
      shared.running += 1;
    }
    const double total = static_cast<double>(request.n) * static_cast<double>(program_.steps);
    while (shared.running > 0) {
      if (shared.finished.wait_for(lock, std::chrono::milliseconds(50),
                                   [&] { return shared.running == 0; })) {
        break;
      }
      lock.unlock();
      poll(static_cast<double>(shared.done.load()) / total);
      lock.lock();
    }
  } catch (...) {
    shared.stop = true;
    join();
    throw;
  }
  join();
  if (shared.error) std::rethrow_exception(shared.error);
  return shared.nan;
}

}  // namespace

std::unique_ptr<Engine> make_engine(ProgramSource source, Storage storage, Isa level) {
  if (storage == Storage::kFloat64) {
    return std::make_unique<EngineOf<double>>(std::move(source), storage, level);
  }
  return std::make_unique<EngineOf<float>>(std::move(source), storage, level);
}

}  // namespace engine
}  // namespace fastgen
