#include "engine/fingerprint.h"

#include <cstring>

namespace fastgen {
namespace {

// Odd constants with as many ones as zeros, from the digits of pi.
constexpr uint64_t kKeys[] = {0x243f6a8885a308d3, 0x13198a2e03707345, 0xa4093822299f31d1,
                              0x082efa98ec4e6c89, 0x452821e638d01377, 0xbe5466cf34e90c6d,
                              0xc0ac29b7c97c50dd, 0x3f84d5b5b5470917};
constexpr int kChains = 8;  // a product's latency is 4, one starts every cycle

uint64_t mixed(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

uint64_t fingerprint(const void* data, int64_t bytes, uint64_t seed) {
  constexpr int64_t kStripe = 16 * kChains;
  const char* from = static_cast<const char*>(data);
  uint64_t chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = seed ^ kKeys[(i + 3) % kChains];
  for (int64_t at = 0; at < bytes; at += kStripe) {
    char stripe[kStripe];
    const char* words = from + at;
    if (bytes - at < kStripe) {  // the last one is filled up with zeros; the length tells
      std::memset(stripe, 0, kStripe);
      std::memcpy(stripe, words, static_cast<size_t>(bytes - at));
      words = stripe;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kChains; ++i) {
      uint64_t a, b;
      std::memcpy(&a, words + 16 * i, 8);
      std::memcpy(&b, words + 16 * i + 8, 8);
      // the sum keeps what a product with 0 would lose
      chains[i] = mixed(a ^ kKeys[i], b ^ chains[i]) + a;
    }
  }
  uint64_t hash = mixed(static_cast<uint64_t>(bytes) ^ kKeys[0], seed ^ kKeys[1]);
  for (int i = 0; i < kChains; ++i) hash = mixed(hash ^ kKeys[i], chains[i] ^ kKeys[7]) + hash;
  return hash;
}

}  // namespace fastgen
