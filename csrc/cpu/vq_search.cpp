#include "vq_search.h"

#include "cpu/vq_filter.h"
#include "cpu/vq_judge.h"
#include "cpu/vq_panels.h"
#include "cpu/vq_reach.h"
#include "cpu/vq_running.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class T, int MR, int NV>
FASTGEN_INLINE void add_products(const T* const* rows, const T* columns, int64_t values,
                                 Tile<T, MR, NV>& tile) {
  const T* a[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) a[i] = rows[i];
  tile.add(a, 0, 1, columns, NV * kLanes<T>, values);
}

// First pass over a group of panels: MR rows by NV vectors of codes.
template <class T>
struct Find {
  template <int MR, int NV>
  struct Kernel {
    static void run(const T* const* rows, const Group<T, T>& group, Running<T>* running) {
      constexpr int kColumns = NV * kLanes<T>;
      GroupBest<T, MR> best;
      for (int64_t p = 0; p < group.panels; ++p) {
        Tile<T, MR, NV> tile;
        tile.start(group.bias + p * kColumns);
        add_products(rows, group.columns + p * kColumns * group.length, group.length, tile);
        best.see(tile, p == 0);
      }
      best.keep(group.number, running);
    }
  };
  static constexpr TileTable<Kernel, decltype(&Kernel<1, 1>::run)> kTable{};
};

// Second pass over a panel, for rows with near ties that share a lane: every code whose score may
// reach the row's `least`.
template <class T>
struct Collect {
  template <int MR, int NV>
  struct Kernel {
    static void run(const VqCodes<T>& codes, const T* const* rows, int64_t first,
                    const Reach<T>* reach, Judge<T>* judges) {
      Tile<T, MR, NV> tile;
      tile.start(codes.bias + first);
      add_products(rows, codes.panels + first * codes.values, codes.values, tile);
      for (int i = 0; i < MR; ++i) {
        const T least = reach[i].least - score_error(codes, reach[i].norm, codes.longest);
        for (int v = 0; v < NV; ++v) {
          uint32_t bits = lane_bits<T>(tile.sum[i][v] >= broadcast<T>(least));
          for (; bits != 0; bits &= bits - 1) {
            const int lane = __builtin_ctz(bits);
            const int64_t k = first + v * kLanes<T> + lane;
            const T error = score_error(codes, reach[i].norm, length_of(codes, k));
            if (tile.sum[i][v][lane] + error >= reach[i].least) judges[i].consider(k);
          }
        }
      }
    }
  };
  static constexpr TileTable<Kernel, decltype(&Kernel<1, 1>::run)> kTable{};
};

// 6 rows make a tile. Centred rows take half the second-level cache at most, beside what they came
// from and a panel; more rows would only read the panels less often than matters.
template <class T>
int64_t block_rows(int64_t values) {
  const int64_t rows = (192 << 10) / static_cast<int64_t>(sizeof(T)) / values;
  return rows > 252 ? 252 : rows < 6 ? 6 : rows / 6 * 6;
}

// The rows of one call of `search`. Rows that are masked or not finite take no part in it.
template <class T>
struct Block {
  const T** given;      // [rows] as they came, in T
  const T** packed;     // [live] centred and scaled
  int64_t* row;         // [live] its place among the rows
  Running<T>* running;  // [live]
  Reach<T>* reach;      // [live]
  Judge<T>* judges;     // [live]
  int* lane;            // [live] see clear_lane
  int64_t* index;       // [rows] -1: masked
  T* distance;          // [rows] |x - code|^2; NaN: not finite
  T* copies;            // [rows][values], where x cannot be read in place; then quantized's
  T* centred;           // [live][values]
  uint32_t* pairs;      // [live][pairs of values], for the filter
  int64_t bytes, live;

  Block(void* memory, int64_t rows, int64_t values) : live(0) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory);
    uintptr_t next = (start + 63) & ~static_cast<uintptr_t>(63);
    take(next, rows, given);
    take(next, rows, packed);
    take(next, rows, row);
    take(next, rows, running);
    take(next, rows, reach);
    take(next, rows, judges);
    take(next, rows, lane);
    take(next, rows, index);
    take(next, rows, distance);
    take(next, rows * values, copies);
    take(next, rows * values, centred);
    take(next, rows * pairs_of(values), pairs);
    bytes = static_cast<int64_t>(next - start) + 64;
  }

 private:
  template <class Field>
  static void take(uintptr_t& next, int64_t count, Field*& field) {
    field = reinterpret_cast<Field*>(next);
    next += (count * sizeof(Field) + 63) & ~static_cast<uintptr_t>(63);
  }
};

template <class T>
int64_t scratch_bytes(int64_t rows, int64_t values) {
  return Block<T>(nullptr, rows, values).bytes + 64;
}

template <class T, class S>
void import_rows(const VqCodes<T>& codes, const VqRows<T>& rows, int64_t begin, int64_t end,
                 Block<T>& block) {
  const int64_t values = codes.values;
  for_each_run(rows.x, begin, end, [&](int64_t offset, int64_t step, int64_t count, int64_t row) {
    const S* from = static_cast<const S*>(rows.x.data) + offset;
    const T** given = block.given + (row - begin);
    if constexpr (std::is_same_v<S, T>) {
      if (!codes.cosine && (rows.x.value == 1 || values == 1)) {
        for (int64_t i = 0; i < count; ++i) given[i] = from + i * step;
        return;
      }
    }
    T* to = block.copies + (row - begin) * values;
    copy_pixels<T>(from, rows.x.value, step, to, 1, values, values, count);
    for (int64_t i = 0; i < count; ++i) given[i] = to + i * values;
  });
}

// Of what is read; 2 KiB are 1 % slower for 65536 rows of 64.
constexpr int64_t kBytesAhead = 8 << 10;
template <class T>
constexpr T kFar = static_cast<T>(uint64_t{1} << 63);

// to = (x - center) * scale; returns its square, which is infinite or NaN if a value is.
template <class T>
FASTGEN_INLINE T center_row(const T* x, const VqCodes<T>& codes, T* to) {
  Vec<T> squares{};
  int64_t d = 0;
  for (; d + kLanes<T> <= codes.values; d += kLanes<T>) {
    const Vec<T> v = (load_vector<T>(x + d) - load_vector<T>(codes.center + d)) * codes.scale;
    squares += v * v;
    store_vector<T>(v, to + d);
  }
  T square = sum_of_lanes<T>(squares);
  for (; d < codes.values; ++d) {
    to[d] = (x[d] - codes.center[d]) * codes.scale;
    square += to[d] * to[d];
  }
  return square;
}

// Values further from the codes than 2^40 times their spread are held there, or their squares would
// leave the range: all distances are equal then, up to rounding.
template <class T>
T hold_far_row(const T* x, const VqCodes<T>& codes, T* to) {
  if (!is_finite(x, codes.values)) return std::numeric_limits<T>::quiet_NaN();
  constexpr T most = static_cast<T>(uint64_t{1} << 40);
  for (int64_t d = 0; d < codes.values; ++d) {
    to[d] = to[d] > most ? most : to[d] < -most ? -most : to[d] == to[d] ? to[d] : 0;
  }
  return dot(to, to, codes.values);
}

template <class T>
void admit_rows(const VqCodes<T>& codes, const VqRows<T>& rows, int64_t begin, int64_t end,
                Block<T>& block) {
  const T infinity = std::numeric_limits<T>::infinity();
  const int64_t ahead = 1 + kBytesAhead / (codes.values * static_cast<int64_t>(sizeof(T)));
  for (int64_t r = begin; r < end; ++r) {
    const int64_t at = r - begin;
    block.index[at] = rows.mask == nullptr || rows.mask[r] ? 0 : -1;
    block.distance[at] = 0;
    if (block.index[at] < 0) continue;
    if (codes.cosine && is_finite(block.given[at], codes.values)) {
      normalise(const_cast<T*>(block.given[at]), codes.values);  // a copy, see import_rows
    }
    T* centred = block.centred + block.live * codes.values;
    if (at + ahead < end - begin) prefetch(block.given[at + ahead], codes.values);
    T square = center_row(block.given[at], codes, centred);
    if (!(square < kFar<T>)) square = hold_far_row(block.given[at], codes, centred);
    if (square != square) {
      block.distance[at] = square;
      continue;
    }
    const int64_t n = block.live++;
    block.packed[n] = centred;
    block.row[n] = at;
    Reach<T>& reach = block.reach[n] = {square_root(square) * T(1.001), 0, 0};
    if constexpr (sizeof(T) == sizeof(float)) {
      if (codes.pairs != nullptr) {
        uint32_t* pairs = block.pairs + n * pairs_of(codes.values);
        reach.lost = square_root(pack_pairs(centred, codes.values, pairs)) * T(1.001);
      }
    }
    store_vector<T>(broadcast<T>(-infinity), block.running[n].best);
    store_vector<T>(broadcast<T>(-infinity), block.running[n].other);
    for (int i = 0; i < kLanes<T>; ++i) block.running[n].group[i] = 0;
  }
}

// Panels in a group: more of them save instructions for short codes, but leave more codes to look
// at in the end, kCandidates at most unless those are few among all; and they fit into half the
// first-level cache. 4096x16384x8: 0.75 of the FMA peak with groups of one panel, 0.79 of four.
template <class T>
int64_t group_panels(const VqCodes<T>& codes) {
  constexpr int64_t kCandidates = 4;
  int64_t panels = kCandidates / kTileVectors;
  const auto fits = [&](int64_t n) {
    return n * kTileColumns<T> * codes.values * static_cast<int64_t>(sizeof(T)) <= 16 << 10 &&
           n * kTileVectors <= 16 && codes.codes >= n * kTileVectors * 512;
  };
  while (fits(2 * panels)) panels *= 2;
  return panels;
}

// Calls f(first code, panels, number, vectors) for all groups of at most `most` panels. The panel
// at the end may be narrower: it comes alone, but with the number of the group it belongs to.
template <class T, class F>
FASTGEN_INLINE void for_each_group(const VqCodes<T>& codes, int64_t most, F f) {
  constexpr int64_t W = kTileColumns<T>;
  const int64_t whole = codes.codes / W;
  int64_t p = 0;
  for (; p < whole; p += most)
    f(p * W, whole - p < most ? whole - p : most, p / most, kTileVectors);
  if (codes.codes % W != 0) {
    f(whole * W, int64_t{1}, whole / most, block_vectors<T>(codes.codes - whole * W));
  }
}

// Calls f(n, height) for tiles of the first `count` rows.
template <class F>
FASTGEN_INLINE void for_each_tile(int64_t count, int vectors, F f) {
  for (int64_t n = 0; n < count;) {
    const int height = next_tile_rows(count - n, vectors);
    f(n, height);
    n += height;
  }
}

// Which codes a lane's best score may belong to.
template <class T>
struct LaneCodes {
  int64_t first, end;  // every kLanes-th

  LaneCodes(const VqCodes<T>& codes, int64_t panels, const Running<T>& r, int lane) {
    const int64_t columns = panels * kTileColumns<T>;
    first = r.group[lane] * columns + lane;
    end = first - lane + columns;
    end = end < codes.codes ? end : codes.codes;
  }
};

// The length of the longest code that a lane's best score may belong to.
template <class T>
T length_of_lane(const VqCodes<T>& codes, const LaneCodes<T>& lane) {
  T longest = 0;
  for (int64_t k = lane.first; k < lane.end; k += kLanes<T>) {
    const T length = length_of(codes, k);
    longest = length > longest ? length : longest;
  }
  return longest;
}

// Judges the lanes that can hold the nearest code; true if another code of such a lane might.
// Each score with its own error, and the best one's with its own: one long code, or a few, shall
// not make all others doubtful.
template <class T>
bool judge_lanes(const VqCodes<T>& codes, int64_t panels, const Running<T>& r, Reach<T>& reach,
                 Judge<T>& judge) {
  const Vec<T> best = load_vector<T>(r.best);
  const T top = largest_lane<T>(best);
  const uint32_t tops = lane_bits<T>(best == broadcast<T>(top));
  const LaneCodes<T> first(codes, panels, r, __builtin_ctz(tops));
  reach.least = top - first_error(codes, reach, length_of_lane(codes, first));
  const T most = first_error(codes, reach, codes.longest);
  const Vec<T> threshold = broadcast<T>(reach.least - most);
  uint32_t bits = lane_bits<T>(best >= threshold);
  for (; bits != 0; bits &= bits - 1) {
    const int i = __builtin_ctz(bits);
    const LaneCodes<T> lane(codes, panels, r, i);
    const T error = first_error(codes, reach, length_of_lane(codes, lane));
    if (r.best[i] + error >= reach.least) judge.consider_every(lane.first, lane.end);
  }
  return lane_bits<T>(load_vector<T>(r.other) >= threshold) != 0;
}

// The one lane that can hold the nearest code, if there is one and no other of its codes can; or
// -1.
template <class T>
FASTGEN_INLINE int clear_lane(const Running<T>& r, T least) {
  const Vec<T> threshold = broadcast<T>(least);
  const uint32_t best = lane_bits<T>(load_vector<T>(r.best) >= threshold);
  const uint32_t other = lane_bits<T>(load_vector<T>(r.other) >= threshold);
  const bool is_clear = other == 0 && best != 0 && (best & (best - 1)) == 0;
  return is_clear ? __builtin_ctz(best) : -1;
}

template <class T>
void first_pass(const VqCodes<T>& codes, int64_t panels, Block<T>& block) {
  for_each_group(codes, panels, [&](int64_t first, int64_t count, int64_t number, int vectors) {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (codes.pairs != nullptr) {
        const int64_t pairs = pairs_of(codes.values);
        const Group<uint32_t, float> group{codes.pairs + first * pairs, codes.bias + first, pairs,
                                           count, number};
        for_each_tile(block.live, vectors, [&](int64_t n, int height) {
          filter(block.pairs + n * pairs, group, vectors, height, block.running + n);
        });
        return;
      }
    }
    const Group<T, T> group{codes.panels + first * codes.values, codes.bias + first, codes.values,
                            count, number};
    for_each_tile(block.live, vectors, [&](int64_t n, int height) {
      Find<T>::kTable.of[vectors][height](block.packed + n, group, block.running + n);
    });
  });
}

// Settles what the first pass makes clear; the rows that need the second pass move to the front.
// Returns how many they are. Two loops, so that the codes to look at are on their way before they
// are needed.
template <class T>
int64_t settle(const VqCodes<T>& codes, int64_t panels, Block<T>& block) {
  for (int64_t n = 0; n < block.live; ++n) {
    const Running<T>& running = block.running[n];
    const T error = first_error(codes, block.reach[n], codes.longest);
    block.lane[n] = clear_lane(running, largest_lane<T>(load_vector<T>(running.best)) - 2 * error);
    if (block.lane[n] < 0) continue;
    const LaneCodes<T> lane(codes, panels, running, block.lane[n]);
    Judge<T>(codes, nullptr).prefetch_every(lane.first, lane.end);
  }
  int64_t again = 0;
  for (int64_t n = 0; n < block.live; ++n) {
    const int64_t at = block.row[n];
    Judge<T> judge(codes, block.given[at]);
    if (block.lane[n] >= 0) {
      const LaneCodes<T> lane(codes, panels, block.running[n], block.lane[n]);
      judge.consider_every(lane.first, lane.end);
    } else if (judge_lanes(codes, panels, block.running[n], block.reach[n], judge)) {
      block.packed[again] = block.packed[n];
      block.reach[again] = block.reach[n];
      block.row[again] = at;
      block.judges[again++] = judge;
      continue;
    }
    block.index[at] = judge.index();
    block.distance[at] = judge.distance();
  }
  return again;
}

template <class T>
void second_pass(const VqCodes<T>& codes, int64_t count, Block<T>& block) {
  for_each_group(codes, 1, [&](int64_t first, int64_t, int64_t, int vectors) {
    for_each_tile(count, vectors, [&](int64_t n, int height) {
      Collect<T>::kTable.of[vectors][height](codes, block.packed + n, first, block.reach + n,
                                             block.judges + n);
    });
  });
  for (int64_t n = 0; n < count; ++n) {
    block.index[block.row[n]] = block.judges[n].index();
    block.distance[block.row[n]] = block.judges[n].distance();
  }
}

template <class T>
int64_t find_nearest(const VqCodes<T>& codes, Block<T>& block) {
  const int64_t panels = group_panels(codes);
  first_pass(codes, panels, block);
  const int64_t again = settle(codes, panels, block);
  if (again > 0) second_pass(codes, again, block);
  return again;
}

template <class T, class S>
void export_rows(const VqCodes<T>& codes, const VqRows<T>& rows, int64_t begin, int64_t end,
                 const Block<T>& block) {
  const int64_t values = codes.values;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const auto write = [&](int64_t at, T* to) {
    if (block.index[at] < 0 || block.distance[at] != block.distance[at]) {
      for (int64_t d = 0; d < values; ++d) to[d] = block.index[at] < 0 ? 0 : nan;
      return;
    }
    const T* code = codes.given + block.index[at] * values;
    for (int64_t d = 0; d < values; ++d) to[d] = code[d];
  };
  for_each_run(rows.quantized, begin, end,
               [&](int64_t offset, int64_t step, int64_t count, int64_t row) {
                 S* to = static_cast<S*>(rows.quantized.data) + offset;
                 if constexpr (std::is_same_v<S, T>) {
                   if (rows.quantized.value == 1 || values == 1) {
                     for (int64_t i = 0; i < count; ++i) write(row - begin + i, to + i * step);
                     return;
                   }
                 }
                 T* copies = block.copies + (row - begin) * values;
                 for (int64_t i = 0; i < count; ++i) write(row - begin + i, copies + i * values);
                 copy_pixels<T>(copies, 1, values, to, rows.quantized.value, step, values, count);
               });
}

template <class T, class S>
int64_t search_as(const VqCodes<T>& codes, const VqRows<T>& rows, int64_t begin, int64_t end,
                  void* scratch) {
  Block<T> block(scratch, end - begin, codes.values);
  import_rows<T, S>(codes, rows, begin, end, block);
  admit_rows(codes, rows, begin, end, block);
  const int64_t again = find_nearest(codes, block);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t place = r / rows.inner * rows.heads * rows.inner + r % rows.inner;
    rows.indices[place] = block.index[r - begin];
    if (rows.commitment == nullptr) continue;
    rows.commitment[place] = block.distance[r - begin] / static_cast<T>(codes.values);
  }
  if (rows.commitment != nullptr) export_rows<T, S>(codes, rows, begin, end, block);
  return again;
}

template <class T>
int64_t search(const VqCodes<T>& codes, const VqRows<T>& rows, int64_t begin, int64_t end,
               void* scratch) {
  switch (rows.storage) {
    case kVqFloat32:
      return search_as<T, float>(codes, rows, begin, end, scratch);
    case kVqBFloat16:
      return search_as<T, BFloat16>(codes, rows, begin, end, scratch);
    case kVqFloat16:
      return search_as<T, Float16>(codes, rows, begin, end, scratch);
    default:
      if constexpr (std::is_same_v<T, double>)
        return search_as<T, double>(codes, rows, begin, end, scratch);
      return 0;  // float64 is never read into float32
  }
}

template <class T>
constexpr VqSearchKernels<T> kernels() {
  return {kTileColumns<T>, normalise<T>,  prepare<T>,       pack<T>,  drop_duplicates<T>,
          measure<T>,      block_rows<T>, scratch_bytes<T>, search<T>};
}

}  // namespace

const VqKernels vq_search_kernels = {kernels<float>(), kernels<double>()};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen
