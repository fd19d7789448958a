// Forward and input gradient: an implicit matrix product. An output pixel's reduction axis is a
// list of runs, spans of adjacent input memory: the taps of one kernel row are neighbours in a
// channels-last image, so that 1-channel 7x7 kernels and 256-channel 1x1 kernels are the same code.
// The image is cut into rectangles of pixels that see the same taps inside the image, each with its
// own runs; so there is no padding, no copy of a channels-last image, and no work for what is
// outside (4 % of 28x28 k3 B, 15 % of 8x8).
#include "masked_conv2d.h"

#include "common/tile_gemm.h"
#include "cpu/masked_conv2d_units.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// A span of the reduction axis.
struct Run {
  int64_t offset;  // in the input, from the pixel's own address
  int64_t length;
  int64_t weight;  // first entry in the packed block
  int64_t mask;    // first entry in the packed masks; -1: every lane takes part
  bool begins_part;
};

// The reduction axis is summed in parts of at most about this many products, each from zero: one
// chain of 1664 (5x5 of 128 channels) is 4 times further from float64, and these cost less than 1 %
// of the time.
constexpr int64_t kPartLength = 256;

// What one block of output channels wants of one tap: input channels [begin, end).
struct Segment {
  int64_t begin, end;
  int64_t mask;
};

// Packed weights of all blocks: [block][tap][in][lanes], masks the same for partial taps only.
// The last block is as narrow as its output channels allow.
template <class T>
struct Packed {
  int64_t partial_taps, entries, blocks, bytes;
  T* weights;
  LaneMask<T>* masks;
  T* bias;
  Segment* segments;  // [block][tap]

  Packed(const MaskedConv2d& c, void* memory) : partial_taps(0) {
    for (int64_t t = 0; t < c.tap_count; ++t) partial_taps += c.taps[t].partial >= 0;
    entries = c.tap_count * c.in;
    blocks = (c.out + kTileColumns<T> - 1) / kTileColumns<T>;
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory);
    uintptr_t next = start;
    take(next, blocks * entries * kTileColumns<T>, weights);
    take(next, blocks * partial_taps * c.in * kTileColumns<T>, masks);
    take(next, blocks * kTileColumns<T>, bias);
    take(next, blocks * c.tap_count, segments);
    bytes = static_cast<int64_t>(next - start);
  }

 private:
  template <class Field>
  static void take(uintptr_t& next, int64_t count, Field*& field) {
    field = reinterpret_cast<Field*>(next);
    next += aligned(count * sizeof(Field));
  }
};

template <class T>
int64_t packed_bytes(const MaskedConv2d& c) {
  return Packed<T>(c, nullptr).bytes;
}

template <class T, class S>
void pack(const MaskedConv2d& c, int64_t begin, int64_t end, void* memory) {
  const Packed<T> packed(c, memory);
  const S* weight = static_cast<const S*>(c.weight);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kTileColumns<T>;
    const int64_t columns = block_vectors<T>(c.out - first) * kLanes<T>;
    const int64_t live = c.out - first < columns ? c.out - first : columns;
    T* weights = packed.weights + block * packed.entries * kTileColumns<T>;
    LaneMask<T>* masks = packed.masks + block * packed.partial_taps * c.in * kTileColumns<T>;
    T* bias = packed.bias + first;
    for (int64_t o = 0; o < kTileColumns<T>; ++o) {
      bias[o] = c.bias && o < live ? load(static_cast<const S*>(c.bias)[first + o]) : T(0);
    }
    for (int64_t k = 0; k < c.in; ++k) {
      for (int64_t t = 0; t < c.tap_count; ++t) {
        const S* from = weight + c.taps[t].weight + k * c.weight_in + first * c.weight_out;
        T* to = weights + (t * c.in + k) * columns;
        for (int64_t o = 0; o < live; ++o) to[o] = load(from[o * c.weight_out]);
        for (int64_t o = live; o < columns; ++o) to[o] = T(0);
      }
    }
    int64_t partial = 0;
    for (int64_t t = 0; t < c.tap_count; ++t) {
      Segment& segment = packed.segments[block * c.tap_count + t];
      segment = {0, c.in, -1};
      if (c.taps[t].partial < 0) continue;
      segment = {c.in, 0, partial * c.in};
      bool all_live = true;
      int64_t live_entries = 0;
      for (int64_t k = 0; k < c.in; ++k) {
        const uint8_t* from =
            c.partial + c.taps[t].partial + k * c.partial_in + first * c.partial_out;
        LaneMask<T>* mask = masks + (segment.mask + k) * columns;
        T* to = weights + (t * c.in + k) * columns;
        int64_t count = 0;
        for (int64_t o = 0; o < columns; ++o) {
          mask[o] = o < live && from[o * c.partial_out] ? -1 : 0;
          if (mask[o] == 0) to[o] = T(0);
          count += mask[o] != 0;
        }
        if (count == 0) continue;
        segment.begin = segment.begin < k ? segment.begin : k;
        segment.end = k + 1;
        ++live_entries;
        all_live = all_live && count == live;
      }
      if (all_live && live_entries == segment.end - segment.begin) segment.mask = -1;
      ++partial;
    }
  }
}

// What a tile needs beside its rows.
template <class T>
struct Block {
  const Run* runs;
  int64_t run_count;
  const T* weights;
  const LaneMask<T>* masks;
  const T* bias;
  int columns;  // that exist
};

template <class T>
struct Multiply {
  using Function = void (*)(const Block<T>&, const T* const* rows, T* const* out);

  template <int MR, int NV>
  struct Kernel {
    static void run(const Block<T>& block, const T* const* rows, T* const* out) {
      constexpr int64_t step = NV * kLanes<T>;
      const T* a[MR];
      T* to[MR];
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        a[i] = rows[i];
        to[i] = out[i];
      }
      Tile<T, MR, NV> tile;
      tile.start(block.bias);
      T parts[MR * step];
      bool has_parts = false;
      for (const Run* run = block.runs; run != block.runs + block.run_count; ++run) {
        if (run->begins_part) {
          tile.store_rows(parts, step, has_parts);
          tile.clear();
          has_parts = true;
        }
        const T* weights = block.weights + run->weight * step;
        if (run->mask < 0) {
          tile.add(a, run->offset, 1, weights, step, run->length);
        } else {
          const LaneMask<T>* masks = block.masks + run->mask * step;
          tile.add_masked(a, run->offset, weights, masks, step, run->length);
        }
      }
      if (has_parts) tile.add_rows(parts, step);
      tile.store(to, block.columns);
    }
  };

  static constexpr TileTable<Kernel, Function> kTiles = {};
};

// Input this far ahead is fetched while a tile computes.
constexpr int64_t kAheadBytes = 16 << 10;

template <class T>
void multiply_box(const Box& box, const Pixels<const T>& x, const Pixels<T>& y, int64_t first,
                  const Block<T>& block) {
  const int vectors = block_vectors<T>(block.columns);
  const auto& tiles = Multiply<T>::kTiles.of[vectors];
  const int64_t span = box.x.end - box.x.begin;
  int64_t left = (box.b.end - box.b.begin) * (box.y.end - box.y.begin) * span;
  int64_t b = box.b.begin, row = box.y.begin, column = 0;
  const T* from = x.at(b, row, box.x.begin);
  T* to = y.at(b, row, box.x.begin) + first;
  const T* rows[kMostTileRows];
  T* out[kMostTileRows];
  const bool fetch = first == 0 && x.pixel >= kLanes<T>;
  while (left > 0) {
    const int count = next_tile_rows(left, vectors);
    for (int filled = 0; filled < count;) {
      if (column == span) {
        column = 0;
        if (++row == box.y.end) {
          row = box.y.begin;
          ++b;
        }
        from = x.at(b, row, box.x.begin);
        to = y.at(b, row, box.x.begin) + first;
      }
      const int64_t rest = span - column;
      const int until = count - filled < rest ? count : filled + static_cast<int>(rest);
      column += until - filled;
      for (; filled < until; ++filled, from += x.pixel, to += y.pixel) {
        rows[filled] = from;
        out[filled] = to;
      }
    }
    for (int i = 0; i < count; ++i) prefetch_write(out[i], block.columns);
    if (fetch) {
      for (int i = 0; i < count; ++i) prefetch(rows[i] + kAheadBytes / sizeof(T), x.pixel);
    }
    tiles[count](block, rows, out);
    left -= count;
  }
}

// The runs of the pixels that see what (y, x) sees. Adjacent ones are joined.
template <class T>
int64_t find_runs(const MaskedConv2d& c, const Segment* segments, const Pixels<const T>& input,
                  int64_t y, int64_t x, Run* runs) {
  int64_t count = 0, part = 0;
  for (int64_t t = 0; t < c.tap_count; ++t) {
    const ConvTap& tap = c.taps[t];
    const Segment& segment = segments[t];
    if (segment.begin >= segment.end) continue;
    if (!inside(y, tap.dy, c.height) || !inside(x, tap.dx, c.width)) continue;
    const Run run = {tap.dy * input.row + tap.dx * input.pixel + segment.begin,
                     segment.end - segment.begin, t * c.in + segment.begin,
                     segment.mask < 0 ? -1 : segment.mask + segment.begin,
                     part > 0 && part + segment.end - segment.begin > kPartLength};
    Run* last = runs + count - 1;
    if (count > 0 && !run.begins_part && run.mask < 0 && last->mask < 0 &&
        last->offset + last->length == run.offset && last->weight + last->length == run.weight) {
      last->length += run.length;
    } else {
      runs[count++] = run;
    }
    part = (run.begins_part ? 0 : part) + run.length;
  }
  return count;
}

// Scratch of one caller: the runs, and a unit's input and output where they need conversion.
template <class T, class S>
struct Scratch {
  int64_t input, output, bytes;

  Scratch(const MaskedConv2d& c, const ConvUnits& units) {
    const int64_t rows = most_rows_seen(c, units);
    const int64_t row = units.images * c.width * sizeof(T);
    input = aligned(c.tap_count * sizeof(Run));
    output = input + (usable_in_place<T, S>(c.x, c.in) ? 0 : aligned(rows * row * c.in));
    bytes = output + (usable_in_place<T, S>(c.y, c.out) ? 0 : aligned(units.rows * row * c.out));
  }
};

template <class T, class S>
int64_t scratch_bytes(const MaskedConv2d& c, const ConvUnits& units) {
  return Scratch<T, S>(c, units).bytes;
}

template <class T>
void convolve_unit(const MaskedConv2d& c, const Packed<T>& packed, const Unit& unit,
                   const Pixels<const T>& x, const Pixels<T>& y, Run* runs) {
  for (int64_t n = 0; n < packed.blocks; ++n) {
    const int64_t first = n * kTileColumns<T>;
    Block<T> block;
    block.runs = runs;
    block.weights = packed.weights + first * packed.entries;
    block.masks = packed.masks + first * packed.partial_taps * c.in;
    block.bias = packed.bias + first;
    block.columns =
        static_cast<int>(c.out - first < kTileColumns<T> ? c.out - first : kTileColumns<T>);
    for (int64_t i = 0; i + 1 < c.row_cuts; ++i) {
      const Range rows = intersection({c.row_cut[i], c.row_cut[i + 1]}, unit.y);
      if (rows.begin >= rows.end) continue;
      for (int64_t j = 0; j + 1 < c.column_cuts; ++j) {
        const Box box = {unit.b, rows, {c.column_cut[j], c.column_cut[j + 1]}};
        block.run_count =
            find_runs<T>(c, packed.segments + n * c.tap_count, x, box.y.begin, box.x.begin, runs);
        multiply_box<T>(box, x, y, first, block);
      }
    }
  }
}

template <class T, class S>
void convolve(const MaskedConv2d& c, const void* memory, const ConvUnits& units, int64_t begin,
              int64_t end, void* scratch) {
  const Packed<T> packed(c, const_cast<void*>(memory));
  const Scratch<T, S> layout(c, units);
  char* base = static_cast<char*>(scratch);
  const bool x_in_place = usable_in_place<T, S>(c.x, c.in);
  const bool y_in_place = usable_in_place<T, S>(c.y, c.out);
  for (int64_t u = begin; u < end; ++u) {
    const Unit unit(c, units, u);
    Pixels<T> x = in_place<T>(c.x), y = in_place<T>(c.y);
    if (!x_in_place) {
      const Range rows = rows_seen(c, unit.y);
      x = staged<T>(base + layout.input, rows.end - rows.begin, c.width, c.in, unit.b.begin,
                    rows.begin);
      import_pixels<T, S>(c.x, x, unit.b.end, rows.end, c.width, c.in);
    }
    if (!y_in_place) {
      y = staged<T>(base + layout.output, unit.y.end - unit.y.begin, c.width, c.out, unit.b.begin,
                    unit.y.begin);
    }
    const Pixels<const T> input = {x.data, x.batch, x.row, x.pixel, x.b0, x.y0};
    convolve_unit<T>(c, packed, unit, input, y, reinterpret_cast<Run*>(base));
    if (!y_in_place) export_pixels<T, S>(y, c.y, unit.b.end, unit.y.end, c.width, c.out);
  }
}

template <class S>
constexpr MaskedConv2dFunctions functions() {
  using T = typename Arithmetic<S>::type;
  return {kTileColumns<T>, packed_bytes<T>, pack<T, S>, scratch_bytes<T, S>, convolve<T, S>};
}

}  // namespace

extern const MaskedConv2dKernels masked_conv2d_kernels = {
    functions<float>(), functions<double>(), functions<BFloat16>(), functions<Float16>()};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen
