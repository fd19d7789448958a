// How the lanes of cuda_on_cpu run and wait for each other: fibers in a fixed order, which shows
// what depends on an order, or host threads, of which a race detector sees every access.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "cuda_on_cpu.h"

#ifdef CUDA_ON_CPU_THREADS
#include <condition_variable>
#include <mutex>
#include <thread>
#else
#include "fiber.h"
#endif

namespace cuda_on_cpu {

#ifdef CUDA_ON_CPU_THREADS

// Lanes that neither wait nor have ended. Relaxed throughout: it must order nothing.
inline std::atomic<int> running{0}, alive{0};

inline void one_runs_less() {
  const int left = running.fetch_sub(1, std::memory_order_relaxed) - 1;
  if (left == 0 && alive.load(std::memory_order_relaxed) > 0) stop("deadlock: every lane waits");
}

class Barrier {
 public:
  // Waits for `need()` lanes; the last one calls `released()` before it lets them go.
  template <class Need, class Released>
  void wait(const Need& need, const Released& released) {
    std::unique_lock<std::mutex> guard(lock_);
    const unsigned round = round_;
    ++waiting_;
    if (waiting_ >= need()) {
      release(released, /*self=*/1);
    } else {
      one_runs_less();
      turned_.wait(guard, [&] { return round != round_; });
    }
  }

  // A lane ends: `left()` says how many are to wait for from now on.
  template <class Left, class Released>
  void leave(const Left& left, const Released& released) {
    std::lock_guard<std::mutex> guard(lock_);
    const unsigned need = left();
    if (waiting_ > 0 && waiting_ >= need) release(released, /*self=*/0);
  }

 private:
  template <class Released>
  void release(const Released& released, unsigned self) {
    released();
    running.fetch_add(static_cast<int>(waiting_ - self), std::memory_order_relaxed);
    waiting_ = 0;
    ++round_;
    turned_.notify_all();
  }

  std::mutex lock_;
  std::condition_variable turned_;
  unsigned waiting_ = 0, round_ = 0;
};

inline void run_lanes(std::vector<Lane>& lanes, const std::function<void(Lane&)>& body) {
  running = alive = static_cast<int>(lanes.size());
  std::vector<std::thread> threads;
  for (Lane& own : lanes) {
    threads.emplace_back([&body, &own] {
      body(own);
      alive.fetch_sub(1, std::memory_order_relaxed);
      one_runs_less();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

#else

class Barrier {
 public:
  template <class Need, class Released>
  void wait(const Need& need, const Released& released) {
    Fiber* own = Fiber::current();
    waiting_.push_back(own);
    if (waiting_.size() >= need()) {
      release(released);
    } else {
      own->ready = false;
      Lane* const of_fiber = lane;
      Fiber::pause();
      lane = of_fiber;
    }
  }

  template <class Left, class Released>
  void leave(const Left& left, const Released& released) {
    const unsigned need = left();
    if (!waiting_.empty() && waiting_.size() >= need) release(released);
  }

 private:
  template <class Released>
  void release(const Released& released) {
    released();
    for (Fiber* fiber : waiting_) fiber->ready = true;
    waiting_.clear();
  }

  std::vector<Fiber*> waiting_;
};

inline void run_lanes(std::vector<Lane>& lanes, const std::function<void(Lane&)>& body) {
  static std::vector<std::unique_ptr<Fiber> > pool;  // stacks stay mapped
  while (pool.size() < lanes.size()) pool.emplace_back(new Fiber);
  for (size_t i = 0; i < lanes.size(); ++i) pool[i]->start([&body, &lanes, i] { body(lanes[i]); });
  for (size_t left = lanes.size(); left > 0;) {
    bool moved = false;
    for (size_t k = 0; k < lanes.size(); ++k) {
      const size_t i = settings().reverse ? lanes.size() - 1 - k : k;
      if (pool[i]->done || !pool[i]->ready) continue;
      pool[i]->resume();
      left -= pool[i]->done;
      moved = true;
    }
    lane = nullptr;
    if (!moved) stop("deadlock: every lane waits");
  }
}

#endif

}  // namespace cuda_on_cpu
