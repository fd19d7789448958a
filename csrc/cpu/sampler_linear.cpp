// linear: out = epilogue(bias + adds + taps @ weight), for rows that lie anywhere. Every output
// adds its terms in that order, the products one by one, however rows are grouped, so that results
// do not depend on batch, threads or schedule.
#include "common/simd_math.h"
#include "common/tile_gemm.h"
#include "cpu/sampler_parts.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

using namespace engine;

// Columns are packed in blocks. A gate's block holds columns of both its halves, the first half's
// in front, so that a block yields finished channels.
template <class T>
struct Blocks {
  bool gate;
  int64_t channels, columns;  // of all blocks; of a whole one

  explicit Blocks(const Instruction& i)
      : gate(i.epilogue == Epilogue::kGate || i.epilogue == Epilogue::kGateBoth),
        channels(gate ? i.nch : i.nacc),
        columns(gate ? kTileColumns<T> / 2 : kTileColumns<T>) {}

  int64_t count() const { return (channels + columns - 1) / columns; }
  int vectors(int64_t block) const {
    const int64_t left = channels - block * columns;
    return gate ? 2 * block_vectors<T>(left < columns ? left : columns) : block_vectors<T>(left);
  }
  int64_t all_vectors() const {
    const int64_t n = count();
    return n == 0 ? 0 : (n - 1) * kTileVectors + vectors(n - 1);
  }
  // Bias comes first, then the weights.
  int64_t bias_bytes() const { return all_vectors() * kVectorBytes; }
};

template <class T, class W>
int64_t packed_bytes_as(const Instruction& i) {
  const Blocks<T> blocks(i);
  const int64_t entries = i.reduction * blocks.all_vectors() * kLanes<T>;
  return blocks.bias_bytes() + (entries * static_cast<int64_t>(sizeof(W)) + 63) / 64 * 64;
}

template <class T, class W>
void pack_as(const Instruction& i, const double* weight, const double* bias, void* packed) {
  const Blocks<T> blocks(i);
  T* to_bias = static_cast<T*>(packed);
  W* to = reinterpret_cast<W*>(static_cast<char*>(packed) + blocks.bias_bytes());
  for (int64_t block = 0; block < blocks.count(); ++block) {
    const int64_t columns = blocks.vectors(block) * kLanes<T>;
    const int64_t half = blocks.gate ? columns / 2 : columns;
    for (int64_t k = -1; k < i.reduction; ++k) {  // -1: the bias
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t channel = block * blocks.columns + (c < half ? c : c - half);
        const int64_t from = c < half ? channel : i.nch + channel;
        const bool live = channel < blocks.channels;
        if (k >= 0) {
          store(static_cast<T>(live ? weight[k * i.nacc + from] : 0.0), to++);
        } else {
          *to_bias++ = live && bias != nullptr ? static_cast<T>(bias[from]) : T(0);
        }
      }
    }
  }
}

// One block's columns for one chunk of rows.
template <class T, class W>
struct Block {
  const TapRun* runs;
  int64_t run_count;
  const T* const* pointers;  // [column][kChunkRows]: run r's rows are those of its first column
  const T* const* adds;      // [add][kChunkRows]
  int64_t add_count;
  const T* bias;
  const W* weights;
  T* const* out;
  T* const* second;  // or null
  int64_t first;     // channel of the block's first column
  int64_t shift;     // a gate's second half of vectors is this many channels further on
  int64_t left;      // channels from `first` on
  Epilogue epilogue;
};

// Out of line, from memory: inlined into every tile these would be most of the code.
template <class T, class W>
__attribute__((noinline)) void store_some(const Vec<T>* sums, int64_t rows, int64_t vectors,
                                          const Block<T, W>& block, int64_t row) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = v * kLanes<T>;
      store_up_to<T>(sums[i * vectors + v], block.left - at, block.out[row + i] + block.first + at);
    }
  }
}

template <class T, class W>
__attribute__((noinline)) void store_gate(const Vec<T>* sums, int64_t rows, int64_t vectors,
                                          const Block<T, W>& block, int64_t row) {
  const int64_t half = vectors / 2;
  for (int64_t i = 0; i < rows; ++i, sums += vectors) {
    T* out = block.out[row + i] + block.first;
    for (int64_t v = 0; v < half; ++v) {
      const int64_t at = v * kLanes<T>;
      store_up_to<T>(gate<T>(sums[v], sums[v + half]), block.left - at, out + at);
    }
    if (block.second == nullptr) continue;
    T* second = block.second[row + i] + block.first;
    for (int64_t v = 0; v < half; ++v) {
      const int64_t at = v * kLanes<T>;
      store_up_to<T>(sums[v], block.left - at, second + at);
      store_up_to<T>(sums[v + half], block.left - at, second + block.shift + half * kLanes<T> + at);
    }
  }
}

template <class T, class W, int MR, int NV>
FASTGEN_INLINE void add_rows(Tile<T, MR, NV>& tile, const Block<T, W>& block, int64_t row) {
  for (int64_t n = 0; n < block.add_count; ++n) {
    const T* const* rows = block.adds + n * kChunkRows + row;
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const T* from = rows[i] + block.first;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const int64_t shift = 2 * v >= NV ? block.shift : 0;
        tile.sum[i][v] += load_vector<T>(from + v * kLanes<T> + shift);
      }
    }
  }
}

template <class T, class W, int MR, int NV>
FASTGEN_INLINE void finish(Tile<T, MR, NV>& tile, const Block<T, W>& block, int64_t row) {
  add_rows(tile, block, row);
  if (block.epilogue == Epilogue::kRelu) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) tile.sum[i][v] = relu<T>(tile.sum[i][v]);
  }
  const bool is_gate = block.epilogue == Epilogue::kGate || block.epilogue == Epilogue::kGateBoth;
  if (!is_gate && block.left >= NV * kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        store_vector<T>(tile.sum[i][v], block.out[row + i] + block.first + v * kLanes<T>);
      }
    return;
  }
  Vec<T> sums[MR * NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[i * NV + v] = tile.sum[i][v];
  (is_gate ? store_gate<T, W> : store_some<T, W>)(sums, MR, NV, block, row);
}

template <class T, class W>
struct Multiply {
  using Function = void (*)(const Block<T, W>&, int64_t row);

  template <int MR, int NV>
  struct Kernel {
    static void run(const Block<T, W>& block, int64_t row) {
      Tile<T, MR, NV> tile;
      tile.start(block.bias);
      const W* weights = block.weights;
      for (const TapRun* run = block.runs; run != block.runs + block.run_count; ++run) {
        const T* const* rows = block.pointers + run->column * kChunkRows + row;
        const T* a[MR];
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) a[i] = rows[i];
        tile.add(a, 0, 1, weights, NV * kLanes<T>, run->length);
        weights += run->length * NV * kLanes<T>;
      }
      finish(tile, block, row);
    }
  };

  static constexpr TileTable<Kernel, Function> kTiles = {};
};

// A single row has too few chains of additions for the arithmetic's latency: several whole blocks
// at once. Fetching weights ahead in software made this a tenth slower on Zen 4, whose own
// prefetcher follows the weights from one instruction into the next.
constexpr int kBlocksAtOnce = 8 / kTileVectors;

template <class T, class W, int NB, int NV>
FASTGEN_INLINE void multiply_row(const Block<T, W>* blocks) {
  constexpr int64_t step = NV * kLanes<T>;
  Tile<T, 1, NV> tile[NB];
  const W* weights[NB];
#pragma GCC unroll 4
  for (int n = 0; n < NB; ++n) {
    tile[n].start(blocks[n].bias);
    weights[n] = blocks[n].weights;
  }
  const TapRun* runs = blocks[0].runs;
  for (const TapRun* run = runs; run != runs + blocks[0].run_count; ++run) {
    const T* a = blocks[0].pointers[run->column * kChunkRows];
    for (const T* end = a + run->length; a != end; ++a) {
      const Vec<T> x = broadcast<T>(*a);
#pragma GCC unroll 4
      for (int n = 0; n < NB; ++n) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          tile[n].sum[0][v] += x * load_as<T>(weights[n] + v * kLanes<T>);
        }
        weights[n] += step;
      }
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < NB; ++n) finish(tile[n], blocks[n], 0);
}

template <class T, class W>
void multiply_row(const Block<T, W>* blocks, int vectors) {
  switch (vectors) {
    case 1:
      return multiply_row<T, W, 1, 1>(blocks);
    case 2:
      return multiply_row<T, W, 1, 2>(blocks);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 3:
      return multiply_row<T, W, 1, 3>(blocks);
    case 4:
      return multiply_row<T, W, 1, 4>(blocks);
#endif
  }
}

// Rows of the taps as runs of the reduction axis; narrow ones are copied side by side.
template <class T>
FASTGEN_INLINE void find_taps(const Instruction& i, const Rows<T>& rows, const T** pointers,
                              T* narrow) {
  for (const TapRun* run = i.runs; run != i.runs + i.run_count; ++run) {
    const T** to = pointers + run->column * kChunkRows;
    if (run->columns == 1) {
      const Column& column = i.columns[run->column];
      rows.find(1 + run->column, column.width, column.channel, to);
      continue;
    }
    int64_t at = 0;
    for (int32_t c = run->column; c < run->column + run->columns; ++c) {
      const Column& column = i.columns[c];
      rows.find(1 + c, column.width, column.channel, to);
      for (int64_t r = 0; r < rows.count; ++r) {
        for (int32_t k = 0; k < column.count; ++k) narrow[r * run->length + at + k] = to[r][k];
      }
      at += column.count;
    }
    for (int64_t r = 0; r < rows.count; ++r) to[r] = narrow + r * run->length;
    narrow += rows.count * run->length;
  }
}

template <class T, class W>
void run_linear_as(const Instruction& i, int64_t first, int64_t count, const Images<T>& images) {
  const bool is_code = i.epilogue == Epilogue::kCode;
  const int64_t chunk = is_code ? kCodeRows : kChunkRows, acc_step = padded(i.nacc);
  const Blocks<T> blocks(i);
  const int64_t block_count = blocks.count();
  const T** pointers = reinterpret_cast<const T**>(images.scratch->pointers);
  T** out = const_cast<T**>(pointers) + i.column_count * kChunkRows;
  T** second = out + kChunkRows;
  T* acc = static_cast<T*>(images.scratch->acc);
  for (int64_t begin = 0; begin < count * images.count; begin += chunk) {
    const int64_t left = count * images.count - begin;
    const Rows<T> rows(i, images, first, begin, left < chunk ? left : chunk);
    find_taps<T>(i, rows, pointers, static_cast<T*>(images.scratch->narrow));
    for (int32_t c = i.taps; c < i.column_count; ++c) {
      const Column& column = i.columns[c];
      rows.find(1 + c, column.width, column.channel, pointers + c * kChunkRows);
    }
    Block<T, W> block;
    block.runs = i.runs;
    block.run_count = i.run_count;
    block.pointers = pointers;
    block.adds = pointers + i.taps * kChunkRows;
    block.add_count = i.adds;
    block.epilogue = i.epilogue;
    block.out = out;
    block.second = nullptr;
    if (is_code) {
      for (int64_t r = 0; r < rows.count; ++r) out[r] = acc + r * acc_step;
    } else {
      rows.find(0, i.width, 0, out);
    }
    if (i.epilogue == Epilogue::kGateBoth) {
      rows.find(1 + i.column_count, i.second_width, 0, second);
      block.second = second;
    }
    block.bias = static_cast<const T*>(i.packed);
    block.weights =
        reinterpret_cast<const W*>(static_cast<const char*>(i.packed) + blocks.bias_bytes());
    for (int64_t n = 0; n < block_count;) {
      const int vectors = blocks.vectors(n);
      const int64_t columns = vectors * kLanes<T>;
      block.first = n * blocks.columns;
      block.left = is_code ? columns : blocks.channels - block.first;
      block.shift = blocks.gate ? i.nch - columns / 2 : 0;
      if (rows.count > 1) {
        const auto& tiles = Multiply<T, W>::kTiles.of[vectors];
        for (int64_t r = 0; r < rows.count;) {
          const int tile_rows = next_tile_rows(rows.count - r, vectors);
          tiles[tile_rows](block, r);
          r += tile_rows;
        }
        block.bias += columns;
        block.weights += columns * i.reduction;
        ++n;
        continue;
      }
      Block<T, W> together[kBlocksAtOnce];
      int at_once = 0;
      while (at_once < kBlocksAtOnce && n < block_count && blocks.vectors(n) == vectors) {
        block.first = n * blocks.columns;
        if (!is_code) block.left = blocks.channels - block.first;
        together[at_once++] = block;
        block.bias += columns;
        block.weights += columns * i.reduction;
        ++n;
      }
      if (vectors == kTileVectors && at_once == kBlocksAtOnce) {
        multiply_row<T, W, kBlocksAtOnce, kTileVectors>(together);
      } else {
        for (int b = 0; b < at_once; ++b) multiply_row<T, W>(together + b, vectors);
      }
    }
    if (is_code) {
      rows.find(0, i.width, 0, out);
      for (int32_t s = 0; s < i.side_count; ++s) {
        const int64_t column = i.table_step - i.side_count + s;
        rows.find(column, i.sides[s].width, i.sides[s].channel, out + (1 + s) * kChunkRows);
      }
      run_code(i, {rows.count, acc, acc_step, pointers + i.first_operand * kChunkRows, out,
                   static_cast<T*>(images.scratch->temporaries)});
    }
  }
}

}  // namespace

void run_linear(const Instruction& i, int64_t first, int64_t count, const Images<float>& images) {
  run_linear_as<float, float>(i, first, count, images);
}
void run_linear(const Instruction& i, int64_t first, int64_t count, const Images<double>& images) {
  run_linear_as<double, double>(i, first, count, images);
}
void run_linear_bfloat16(const Instruction& i, int64_t first, int64_t count,
                         const Images<float>& images) {
  run_linear_as<float, BFloat16>(i, first, count, images);
}

template <>
int64_t packed_bytes<float>(const Instruction& i) {
  return packed_bytes_as<float, float>(i);
}
template <>
int64_t packed_bytes<double>(const Instruction& i) {
  return packed_bytes_as<double, double>(i);
}
template <>
int64_t packed_bytes<BFloat16>(const Instruction& i) {
  return packed_bytes_as<float, BFloat16>(i);
}

template <>
void pack<float>(const Instruction& i, const double* weight, const double* bias, void* packed) {
  pack_as<float, float>(i, weight, bias, packed);
}
template <>
void pack<double>(const Instruction& i, const double* weight, const double* bias, void* packed) {
  pack_as<double, double>(i, weight, bias, packed);
}
template <>
void pack<BFloat16>(const Instruction& i, const double* weight, const double* bias, void* packed) {
  pack_as<float, BFloat16>(i, weight, bias, packed);
}

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen
