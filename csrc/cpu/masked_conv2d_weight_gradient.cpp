// The weight's gradient: rows are (tap, input channel), columns output channels, and the reduction
// axis runs over the pixels of a unit whose tap lies inside the image. The register tile is the
// forward's, stepping by pixels. A unit's sum starts at zero and is added to the total once, which
// also keeps rounding errors small over millions of pixels.
#include "common/tile_gemm.h"
#include "cpu/masked_conv2d_units.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// With fewer input channels than this a tap alone fills no tile. Then x is copied with a border of
// zeros, so that all taps see every pixel and share tiles.
constexpr int64_t kFewChannels = 4;

template <class T>
struct Sums {
  int64_t blocks, entries;  // [block][tap * in][kTileColumns], then [block][kTileColumns] for bias
  int64_t bias, bytes;

  explicit Sums(const MaskedConv2d& c) {
    blocks = (c.out + kTileColumns<T> - 1) / kTileColumns<T>;
    entries = c.tap_count * c.in;
    bias = blocks * entries * kTileColumns<T>;
    bytes = aligned((bias + blocks * kTileColumns<T>)*sizeof(T));
  }
};

template <class T>
int64_t sums_bytes(const MaskedConv2d& c) {
  return Sums<T>(c).bytes;
}

// Scratch of one caller: a unit's x and gradient where they cannot be used in place.
template <class T, class S>
struct Scratch {
  bool copy_x, copy_grad, bordered;
  int64_t left, right, up, down;  // border
  int64_t grad_channels;          // whole vectors
  int64_t grad, bytes;

  Scratch(const MaskedConv2d& c, const ConvUnits& units) {
    bordered = c.in < kFewChannels && c.tap_count > 1;
    left = right = up = down = 0;
    for (int64_t t = 0; bordered && t < c.tap_count; ++t) {
      const ConvTap& tap = c.taps[t];
      left = tap.dx < -left ? -tap.dx : left;
      right = tap.dx > right ? tap.dx : right;
      up = tap.dy < -up ? -tap.dy : up;
      down = tap.dy > down ? tap.dy : down;
    }
    copy_x = bordered || !usable_in_place<T, S>(c.x, c.in);
    grad_channels = (c.out + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    copy_grad = grad_channels != c.out || !usable_in_place<T, S>(c.y, c.out);
    const int64_t rows = bordered ? units.rows + up + down : most_rows_seen(c, units);
    const int64_t x_pixels = units.images * rows * (c.width + left + right);
    grad = copy_x ? aligned(x_pixels * c.in * sizeof(T)) : 0;
    const int64_t grad_pixels = units.images * units.rows * c.width;
    bytes = grad + (copy_grad ? aligned(grad_pixels * grad_channels * sizeof(T)) : 0);
  }
};

template <class T, class S>
int64_t scratch_bytes(const MaskedConv2d& c, const ConvUnits& units) {
  return Scratch<T, S>(c, units).bytes;
}

template <class T, class S>
Pixels<T> import_x(const MaskedConv2d& c, const Scratch<T, S>& layout, const Unit& unit,
                   char* memory) {
  const Range rows = rows_seen(c, unit.y);
  if (!layout.bordered) {
    const Pixels<T> x =
        staged<T>(memory, rows.end - rows.begin, c.width, c.in, unit.b.begin, rows.begin);
    import_pixels<T, S>(c.x, x, unit.b.end, rows.end, c.width, c.in);
    return x;
  }
  const int64_t width = c.width + layout.left + layout.right;
  const int64_t height = unit.y.end - unit.y.begin + layout.up + layout.down;
  Pixels<T> x = staged<T>(memory, height, width, c.in, unit.b.begin, unit.y.begin - layout.up);
  const int64_t count = (unit.b.end - unit.b.begin) * x.batch;
  for (int64_t i = 0; i < count; ++i) x.data[i] = T(0);
  x.data += layout.left * x.pixel;  // (b, y, 0) is the image's first column
  Pixels<T> inner = x;
  inner.data += (rows.begin - x.y0) * x.row;
  inner.y0 = rows.begin;
  import_pixels<T, S>(c.x, inner, unit.b.end, rows.end, c.width, c.in);
  return x;
}

template <class T, class S>
Pixels<T> import_grad(const MaskedConv2d& c, const Scratch<T, S>& layout, const Unit& unit,
                      char* memory) {
  const int64_t pixel = layout.grad_channels, row = c.width * pixel;
  const int64_t rows = unit.y.end - unit.y.begin;
  const Pixels<T> grad = {
      reinterpret_cast<T*>(memory), rows * row, row, pixel, unit.b.begin, unit.y.begin};
  import_pixels<T, S>(c.y, grad, unit.b.end, unit.y.end, c.width, c.out);
  return grad;
}

// Memory of the next unit, fetched a little with every row while this one computes.
struct Ahead {
  const char* next;
  const char* end;
  int64_t step;

  FASTGEN_INLINE void fetch() {
    if (next == end) return;
    const char* until = next + step < end ? next + step : end;
    for (; next < until; next += 64) __builtin_prefetch(next, 0, 2);
    next = next < end ? next : end;
  }
};

// Both operands of one unit and block of output channels.
template <class T>
struct Operands {
  Pixels<const T> x;
  Pixels<const T> grad;  // from the block's first channel on
  bool add;              // to what `sums` holds
  Ahead* ahead[2];
};

// sums[i] (+)= sum over the box of x[pixel + offsets[i]] * grad[pixel]
template <class T>
struct Multiply {
  using Function = void (*)(const Operands<T>&, const Box&, const int64_t* offsets, T* sums);

  template <int MR, int NV>
  struct Kernel {
    static void run(const Operands<T>& o, const Box& box, const int64_t* offsets, T* sums) {
      const T* a[MR];
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) a[i] = o.x.data + offsets[i];
      Tile<T, MR, NV> tile;
      tile.clear();
      int64_t span = box.x.end > box.x.begin ? box.x.end - box.x.begin : 0;
      int64_t rows = box.y.end - box.y.begin;
      if (o.x.row == span * o.x.pixel && o.grad.row == span * o.grad.pixel) {
        span *= rows > 0 ? rows : 0;  // whole rows follow each other
        rows = rows > 0 ? 1 : 0;
      }
      const int64_t x_pixel = o.x.pixel, x_row = o.x.row;
      const int64_t grad_pixel = o.grad.pixel, grad_row = o.grad.row;
      for (int64_t b = box.b.begin; b < box.b.end; ++b) {
        int64_t at = o.x.at(b, box.y.begin, box.x.begin) - o.x.data;
        const T* grad = o.grad.at(b, box.y.begin, box.x.begin);
        for (int64_t left = rows; left > 0; --left, at += x_row, grad += grad_row) {
          o.ahead[0]->fetch();
          o.ahead[1]->fetch();
          tile.add(a, at, x_pixel, grad, grad_pixel, span);
        }
      }
      tile.store_rows(sums, kTileColumns<T>, o.add);
    }
  };

  static constexpr TileTable<Kernel, Function> kTiles = {};
};

// Rows [begin, end) of (tap, input channel), which all see the box.
template <class T>
void multiply_rows(const MaskedConv2d& c, const Operands<T>& operands, const Box& box,
                   int64_t begin, int64_t end, int vectors, T* sums) {
  const auto& tiles = Multiply<T>::kTiles.of[vectors];
  while (begin < end) {
    const int count = next_tile_rows(end - begin, vectors);
    int64_t offsets[kMostTileRows];
    for (int i = 0; i < count; ++i) {
      const ConvTap& tap = c.taps[(begin + i) / c.in];
      offsets[i] = tap.dy * operands.x.row + tap.dx * operands.x.pixel + (begin + i) % c.in;
    }
    tiles[count](operands, box, offsets, sums + begin * kTileColumns<T>);
    begin += count;
  }
}

// One vector of the bias's gradient.
template <class T>
void add_bias(const Operands<T>& o, const Box& box, int64_t first, T* sums) {
  constexpr int kChains = 4;  // independent, to hide the latency of additions
  Vec<T> sum[kChains] = {};
  for (int64_t b = box.b.begin; b < box.b.end; ++b) {
    for (int64_t y = box.y.begin; y < box.y.end; ++y) {
      const T* grad = o.grad.at(b, y, 0) + first;
      int64_t x = 0;
      for (; x + kChains <= box.x.end; x += kChains) {
        for (int i = 0; i < kChains; ++i) sum[i] += load_vector<T>(grad + (x + i) * o.grad.pixel);
      }
      for (; x < box.x.end; ++x) sum[0] += load_vector<T>(grad + x * o.grad.pixel);
    }
  }
  Vec<T> total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  if (o.add) total += load_vector<T>(sums + first);
  store_vector<T>(total, sums + first);
}

template <class T>
void accumulate_block(const MaskedConv2d& c, const Operands<T>& operands, const Unit& unit,
                      bool bordered, int vectors, T* sums) {
  const Box whole = {unit.b, unit.y, {0, c.width}};
  if (bordered) {
    multiply_rows<T>(c, operands, whole, 0, c.tap_count * c.in, vectors, sums);
    return;
  }
  for (int64_t t = 0; t < c.tap_count; ++t) {
    const ConvTap& tap = c.taps[t];
    const Box box = {unit.b, intersection(unit.y, {-tap.dy, c.height - tap.dy}),
                     intersection({0, c.width}, {-tap.dx, c.width - tap.dx})};
    multiply_rows<T>(c, operands, box, t * c.in, (t + 1) * c.in, vectors, sums);
  }
}

// What unit `index` reads of `images` in place; nothing where that is not one stretch of memory.
template <class T>
Ahead ahead_of(const MaskedConv2d& c, const ConvUnits& units, int64_t index, int64_t end,
               const StridedImages& images, int64_t channels, bool copied, int64_t calls) {
  const bool dense = images.pixel == channels && images.row == c.width * channels &&
                     (units.images == 1 || images.batch == c.height * images.row);
  if (copied || !dense || index >= end) return {nullptr, nullptr, 0};
  const Unit unit(c, units, index);
  const T* data = static_cast<const T*>(images.data);
  const char* from =
      reinterpret_cast<const char*>(data + unit.b.begin * images.batch + unit.y.begin * images.row);
  const char* to = reinterpret_cast<const char*>(data + (unit.b.end - 1) * images.batch +
                                                 unit.y.end * images.row);
  return {from, to, aligned((to - from) / calls + 1)};
}

// Rows of pixels that a unit's tiles walk over, about.
template <class T>
int64_t row_walks(const MaskedConv2d& c, const ConvUnits& units, bool bordered, int64_t blocks) {
  const int64_t rows = bordered ? c.tap_count * c.in : c.in, times = bordered ? 1 : c.tap_count;
  const int64_t tiles = (rows / kTileRows[kTileVectors] + 1) * times * blocks;
  return 1 + tiles * units.images * units.rows * 3 / 4;
}

template <class T, class S>
void accumulate(const MaskedConv2d& c, const ConvUnits& units, int64_t begin, int64_t end,
                int64_t block_begin, int64_t block_end, bool with_weight, bool with_bias,
                void* memory, void* scratch) {
  const Sums<T> layout(c);
  const Scratch<T, S> staging(c, units);
  T* sums = static_cast<T*>(memory);
  char* base = static_cast<char*>(scratch);
  for (int64_t u = begin; u < end; ++u) {
    const Unit unit(c, units, u);
    Pixels<T> x = in_place<T>(c.x), grad = in_place<T>(c.y);
    if (staging.copy_x && with_weight) x = import_x<T, S>(c, staging, unit, base);
    if (staging.copy_grad) grad = import_grad<T, S>(c, staging, unit, base + staging.grad);
    const int64_t walks = row_walks<T>(c, units, staging.bordered, block_end - block_begin);
    Ahead x_ahead = ahead_of<T>(c, units, u + 1, end, c.x, c.in, staging.copy_x, walks);
    Ahead grad_ahead = ahead_of<T>(c, units, u + 1, end, c.y, c.out, staging.copy_grad, walks);
    for (int64_t n = block_begin; n < block_end; ++n) {
      const int64_t first = n * kTileColumns<T>;
      const int vectors = block_vectors<T>(c.out - first);
      const Operands<T> operands = {
          {x.data, x.batch, x.row, x.pixel, x.b0, x.y0},
          {grad.data + first, grad.batch, grad.row, grad.pixel, grad.b0, grad.y0},
          u > begin,
          {&x_ahead, &grad_ahead}};
      if (with_weight) {
        accumulate_block<T>(c, operands, unit, staging.bordered, vectors,
                            sums + first * layout.entries);
      }
      if (with_bias) {
        const Box whole = {unit.b, unit.y, {0, c.width}};
        T* bias = sums + layout.bias + first;
        for (int v = 0; v < vectors; ++v) add_bias<T>(operands, whole, v * kLanes<T>, bias);
      }
    }
  }
}

// total[0 .. columns) = the sum of the chunks' values, in their order.
template <class T>
void add_chunks(const T* sums, int64_t chunk, int64_t chunks, int64_t columns, T* total) {
  for (int64_t o = 0; o < columns; ++o) total[o] = sums[o];
  for (int64_t i = 1; i < chunks; ++i) {
    for (int64_t o = 0; o < columns; ++o) total[o] += sums[i * chunk + o];
  }
}

template <class T, class S>
void finish(const MaskedConv2d& c, const void* memory, int64_t chunks, int64_t begin, int64_t end) {
  const Sums<T> layout(c);
  const int64_t chunk = layout.bytes / sizeof(T);
  for (int64_t n = 0; n < layout.blocks; ++n) {
    const int64_t first = n * kTileColumns<T>;
    const Range live = intersection({first, first + kTileColumns<T>}, {0, c.out});
    for (int64_t k = begin; k < end; ++k) {
      for (int64_t t = 0; t < c.tap_count; ++t) {
        const ConvTap& tap = c.taps[t];
        const T* sums = static_cast<const T*>(memory) + first * layout.entries +
                        (t * c.in + k) * kTileColumns<T>;
        T total[kTileColumns<T>];
        add_chunks(sums, chunk, chunks, live.end - first, total);
        S* to = static_cast<S*>(c.weight) + tap.weight + k * c.weight_in;
        const int64_t mask = tap.partial + k * c.partial_in;
        for (int64_t o = first; o < live.end; ++o) {
          if (tap.partial >= 0 && !c.partial[mask + o * c.partial_out]) continue;
          store(total[o - first], to + o * c.weight_out);
        }
      }
    }
  }
}

template <class T, class S>
void finish_bias(const MaskedConv2d& c, const void* memory, int64_t chunks, void* bias) {
  const Sums<T> layout(c);
  for (int64_t first = 0; first < c.out; first += kTileColumns<T>) {
    const Range live = intersection({first, first + kTileColumns<T>}, {0, c.out});
    T total[kTileColumns<T>];
    add_chunks(static_cast<const T*>(memory) + layout.bias + first, layout.bytes / sizeof(T),
               chunks, live.end - first, total);
    for (int64_t o = first; o < live.end; ++o) store(total[o - first], static_cast<S*>(bias) + o);
  }
}

template <class S>
constexpr WeightGradientFunctions functions() {
  using T = typename Arithmetic<S>::type;
  return {kTileColumns<T>,  sums_bytes<T>, scratch_bytes<T, S>,
          accumulate<T, S>, finish<T, S>,  finish_bias<T, S>};
}

}  // namespace

extern const MaskedConv2dWeightGradientKernels masked_conv2d_weight_gradient_kernels = {
    functions<float>(), functions<double>(), functions<BFloat16>(), functions<Float16>()};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen
