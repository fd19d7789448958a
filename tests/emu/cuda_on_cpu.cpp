#include "cuda_on_cpu.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "lanes.h"

namespace cuda_on_cpu {
namespace {

// What the lanes of a warp meet at; one barrier for each mask that is in use.
struct Warp {
  uint64_t mailbox[32];
  Barrier whole;
  std::map<unsigned, Barrier> partial;
  std::mutex lock;  // of `partial`

  Barrier& barrier(unsigned mask, unsigned live) {
    if (mask == live) return whole;
    std::lock_guard<std::mutex> guard(lock);
    return partial[mask];
  }
};

}  // namespace

struct Block {
  dim3 index, size, grid;
  std::vector<Warp> warps;
  Barrier barrier;
  std::atomic<unsigned> live;
  std::atomic<const char*> site{nullptr};  // of the __syncthreads() that lanes wait at
  std::map<const void*, std::unique_ptr<char[]>> shared;
  std::mutex lock;  // of `shared`
  size_t dynamic_bytes;

  Block(dim3 index, dim3 size, dim3 grid, size_t dynamic_bytes)
      : index(index),
        size(size),
        grid(grid),
        warps((size.volume() + 31) / 32),
        live(size.volume()),
        dynamic_bytes(dynamic_bytes) {}

  // Lanes that an incomplete last warp does not have are in no mask.
  unsigned lanes_of(unsigned warp) const {
    const size_t count = size.volume() - size_t(warp) * 32;
    return count >= 32 ? ~0u : (1u << count) - 1;
  }
};

thread_local Lane* lane = nullptr;

const dim3& block_index() { return lane->block->index; }
const dim3& block_size() { return lane->block->size; }
const dim3& grid_size() { return lane->block->grid; }

Settings& settings() {
  static Settings now;
  return now;
}

void stop(const char* why) {
  if (lane != nullptr) {
    std::fprintf(stderr, "cuda_on_cpu: %s (block %u, lane %u)\n", why, lane->block->index.x,
                 lane->rank);
  } else {
    std::fprintf(stderr, "cuda_on_cpu: %s\n", why);
  }
  std::abort();
}

void sync_block(const char* site) {
  Block& block = *lane->block;
  const char* other = nullptr;
  // Not ordered: a race detector must see the barrier alone.
  if (!block.site.compare_exchange_strong(other, site, std::memory_order_relaxed) &&
      other != site && std::strcmp(other, site) != 0) {
    std::fprintf(stderr, "cuda_on_cpu: at %s and at %s\n", other, site);
    stop("lanes of a block wait at different __syncthreads()");
  }
  block.barrier.wait([&] { return block.live.load(std::memory_order_relaxed); },
                     [&] { block.site.store(nullptr, std::memory_order_relaxed); });
}

void sync_warp(unsigned mask) {
  const unsigned warp = lane->rank / 32, live = lane->block->lanes_of(warp);
  mask &= live;
  if (!((mask >> lane_of_warp()) & 1)) stop("a lane outside its own mask");
  lane->block->warps[warp]
      .barrier(mask, live)
      .wait([&] { return static_cast<unsigned>(__builtin_popcount(mask)); }, [] {});
}

void exchange(unsigned mask, uint64_t bits, uint64_t (&of_warp)[32]) {
  Warp& warp = lane->block->warps[lane->rank / 32];
  warp.mailbox[lane_of_warp()] = bits;
  sync_warp(mask);
  for (int i = 0; i < 32; ++i) {
    if ((mask >> i) & 1) of_warp[i] = warp.mailbox[i];
  }
  sync_warp(mask);
}

// Each declaration has an allocation of its own, so that an address sanitizer sees its end.
void* shared(const void* key, size_t bytes) {
  Block& block = *lane->block;
  std::lock_guard<std::mutex> guard(block.lock);
  std::unique_ptr<char[]>& memory = block.shared[key];
  if (!memory) {
    memory.reset(new char[bytes]);
    std::memset(memory.get(), 0xff, bytes);
  }
  return memory.get();
}

void* dynamic_shared() {
  static const char key = 0;
  return shared(&key, lane->block->dynamic_bytes);
}

void launch(dim3 grid, dim3 size, size_t shared_bytes, cudaStream_t,
            const std::function<void()>& kernel) {
  const size_t count = grid.volume(), at_once = settings().blocks;
  for (size_t done = 0; done < count; done += at_once) {
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<Lane> lanes;
    for (size_t b = done; b < count && b < done + at_once; ++b) {
      const size_t i = settings().reverse ? count - 1 - b : b;
      blocks.emplace_back(new Block(grid.at(i), size, grid, shared_bytes));
      for (unsigned rank = 0; rank < size.volume(); ++rank) {
        lanes.push_back({blocks.back().get(), size.at(rank), rank});
      }
    }
    run_lanes(lanes, [&](Lane& own) {
      lane = &own;
      kernel();
      own.block->barrier.leave([&] { return --own.block->live; },
                               [&] { own.block->site.store(nullptr); });
    });
    lane = nullptr;
  }
}

}  // namespace cuda_on_cpu
