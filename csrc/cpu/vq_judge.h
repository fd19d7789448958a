// The nearest of a row's few candidates, by the distances themselves.
#pragma once

#include <limits>

#include "cpu/vq_panels.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// Sums of squares of differences are off by a few units of their own size only, whatever the
// offset of the data; where two are as close as that, float64 decides, and among equals the index.
template <class T>
class Judge {
 public:
  Judge(const VqCodes<T>& codes, const T* x) : codes_(&codes), x_(x) {}

  // Every kLanes-th code from `first` on, four at a time.
  FASTGEN_INLINE void consider_every(int64_t first, int64_t end) {
    for (; first + 3 * kLanes<T> < end; first += 4 * kLanes<T>) consider_four(first);
    for (; first < end; first += kLanes<T>) consider(first);
  }

  FASTGEN_INLINE void prefetch_every(int64_t first, int64_t end) const {
    for (; first < end; first += kLanes<T>) {
      const int64_t most = 512 / sizeof(T);  // the rest follows by itself
      prefetch(code(first), codes_->values < most ? codes_->values : most);
    }
  }

  void consider(int64_t k) {
    if (k >= codes_->codes) return;  // a column that fills a panel up
    const T* const codes[1] = {code(k)};
    T distance[1];
    distances(codes, distance);
    decide(k, distance[0]);
  }

  // Of the nearest; 0 if no code can be chosen.
  int64_t index() const { return index_ < 0 ? 0 : index_; }
  // |x - code|^2; NaN if no code can be chosen.
  T distance() const {
    if (index_ < 0) return std::numeric_limits<T>::quiet_NaN();
    // scaled squares leave the range where a row is far from all codes, or on one of them
    const T tiny = std::numeric_limits<T>::min() * (1 << 20);
    const bool in_range = distance_ > tiny && distance_ <= std::numeric_limits<T>::max();
    if (!in_range) return static_cast<T>(exact(index_, 1));
    return distance_ / codes_->scale / codes_->scale;
  }

 private:
  FASTGEN_INLINE const T* code(int64_t k) const { return codes_->given + k * codes_->values; }

  template <int N>
  FASTGEN_INLINE void distances(const T* const (&codes)[N], T (&out)[N]) const {
    const T scale = codes_->scale;
    const int64_t values = codes_->values;
    Vec<T> sums[N] = {};
    int64_t d = 0;
    for (; d + kLanes<T> <= values; d += kLanes<T>) {
      const Vec<T> row = load_vector<T>(x_ + d);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        const Vec<T> difference = (row - load_vector<T>(codes[j] + d)) * scale;
        sums[j] += difference * difference;
      }
    }
    sums_of_lanes<T, N>(sums, out);
    for (; d < values; ++d) {
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        const T difference = (x_[d] - codes[j][d]) * scale;
        out[j] += difference * difference;
      }
    }
    if (!codes_->cosine) return;
    for (int j = 0; j < N; ++j) out[j] = cosine_distance(codes[j], out[j]);
  }

  // 2 - 2 cosine, which |x - code|^2 is only where both have length 1.
  T cosine_distance(const T* code, T distance) const {
    if (dot(x_, x_, codes_->values) == 0) return 2 + dot(code, code, codes_->values) * 0;
    return dot(code, code, codes_->values) == 0 ? 2 : distance;
  }

  void decide(int64_t k, T distance) {
    if (!(distance <= std::numeric_limits<T>::max()) && !is_finite(code(k), codes_->values)) return;
    const T margin = slack() * distance_;
    if (index_ >= 0 && distance > distance_ + margin) return;
    if (index_ >= 0 && !(distance < distance_ - margin) && !is_nearer(k, distance)) return;
    index_ = k;
    distance_ = distance;
  }

  FASTGEN_INLINE void consider_four(int64_t first) {
    const T* codes[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) codes[v] = code(first + v * kLanes<T>);
    T distance[4];
    distances(codes, distance);
    // Which is the least without branches that would depend on it: by the bits of the distances,
    // the last two of them the number. Near ties, or codes that are not finite, are few.
    using Int = LaneMask<T>;
    Int key = std::numeric_limits<Int>::max();
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      Int bits;
      __builtin_memcpy(&bits, &distance[v], sizeof bits);
      bits = (bits & std::numeric_limits<Int>::max() & ~Int{3}) | v;
      key = bits < key ? bits : key;
    }
    const int which = static_cast<int>(key & 3);
    const T least = distance[which];
    int near = 0;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) near += !(distance[v] > least + slack() * least);
    if (near == 1) {
      decide(first + which * kLanes<T>, least);
      return;
    }
    for (int v = 0; v < 4; ++v) decide(first + v * kLanes<T>, distance[v]);
  }

  // Relative: 4 roundings a value are more than enough.
  FASTGEN_INLINE T slack() const {
    return 4 * static_cast<T>(codes_->values + 8) * std::numeric_limits<T>::epsilon();
  }

  bool is_nearer(int64_t k, T distance) const {
    if constexpr (sizeof(T) == sizeof(double)) {
      return distance < distance_ || (distance == distance_ && k < index_);
    } else {
      const double mine = exact(k, codes_->scale), theirs = exact(index_, codes_->scale);
      return mine < theirs || (mine == theirs && k < index_);
    }
  }

  double exact(int64_t k, double scale) const {
    const T* c = code(k);
    if (codes_->cosine && cosine_distance(c, 0) != 0) return cosine_distance(c, 0);
    double sum = 0;
    for (int64_t d = 0; d < codes_->values; ++d) {
      const double difference = (static_cast<double>(x_[d]) - c[d]) * scale;
      sum += difference * difference;
    }
    return sum;
  }

  const VqCodes<T>* codes_;
  const T* x_;
  int64_t index_ = -1;
  T distance_ = 0;
};

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen
