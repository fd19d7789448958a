#include "add_noise.h"

#include "common/philox.h"
#include "common/pixels.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// What one kind of noise makes of a vector of x and one of random numbers.
template <class T>
struct Gaussian {
  T amount;

  template <class S>
  explicit Gaussian(const AddNoiseArgs<S>& args) : amount(static_cast<T>(args.amount)) {}

  FASTGEN_INLINE void draw(const PhiloxKey& key, uint64_t block, Vec<T> (&numbers)[8]) const {
    philox_normals<T>(key, block, numbers);
  }
  FASTGEN_INLINE Vec<T> noisy(Vec<T> x, Vec<T> eps, BitVec<T>* changed) const {
    *changed = ~BitVec<T>{};
    return x + amount * eps;
  }
};

template <class T>
struct Replacing {
  T below, pepper_below, pepper, salt;

  // Thresholds as float32 has them: every backend decides on the same bits.
  template <class S>
  explicit Replacing(const AddNoiseArgs<S>& args)
      : below(static_cast<float>(args.amount)),
        pepper_below(static_cast<float>(args.amount / 2)),
        pepper(args.kind == NoiseKind::kSaltPepper ? static_cast<T>(args.low) : T(0)),
        salt(args.kind == NoiseKind::kSaltPepper ? static_cast<T>(args.high) : T(0)) {}

  FASTGEN_INLINE void draw(const PhiloxKey& key, uint64_t block, Vec<T> (&numbers)[8]) const {
    philox_uniforms<T, 24>(key, block, numbers);
  }
  FASTGEN_INLINE Vec<T> noisy(Vec<T> x, Vec<T> u, BitVec<T>* changed) const {
    *changed = u < below;
    return u < pepper_below ? broadcast<T>(pepper) : (*changed ? broadcast<T>(salt) : x);
  }
};

template <class T, class S, class Noise>
void make_noise(const AddNoiseArgs<S>& args, const Noise& noise, int64_t begin, int64_t end) {
  constexpr int kGroup = kPhiloxGroup<T>, n = kLanes<T>;
  PhiloxKey key(args.seed, begin / 4);
  Vec<T> numbers[8];
  for (int64_t at = begin; at < end; at += kGroup) {
    key.move_to(at / 4);
    noise.draw(key, at / 4, numbers);
    for (int j = 0; j < 8 && at + j * n < end; ++j) {
      const int64_t i = at + j * n, left = end - i;
      BitVec<T> changed;
      if (left >= n) {
        store_converted<T>(noise.noisy(load_converted<T>(args.x + i), numbers[j], &changed),
                           args.out + i);
      } else {
        T values[n] = {};
        for (int64_t k = 0; k < left; ++k) values[k] = load(args.x[i + k]);
        store_vector<T>(noise.noisy(load_vector<T>(values), numbers[j], &changed), values);
        for (int64_t k = 0; k < left; ++k) store(values[k], args.out + i + k);
      }
      if (args.changed == nullptr) continue;
      const uint32_t bits = lane_bits<T>(changed);
      for (int k = 0; k < n && k < left; ++k) args.changed[i + k] = bits >> k & 1;
    }
  }
}

template <class S>
void add_noise(const AddNoiseArgs<S>& args, int64_t begin, int64_t end) {
  using T = typename Arithmetic<S>::type;
  if (args.kind == NoiseKind::kGaussian) {
    make_noise<T>(args, Gaussian<T>(args), begin, end);
  } else {
    make_noise<T>(args, Replacing<T>(args), begin, end);
  }
}

}  // namespace

const AddNoiseKernels add_noise_kernels = {add_noise<float>, add_noise<double>, add_noise<BFloat16>,
                                           add_noise<Float16>};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen
