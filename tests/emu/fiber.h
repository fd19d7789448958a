// Functions that can pause: each has a stack of its own, one runs at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

#if defined(__x86_64__)
// Pushes what a call must preserve, stores the stack pointer, takes the other one and returns
// there: a tenth of the time of swapcontext(), which asks the kernel for the signal mask.
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(
.pushsection .text
.weak cuda_on_cpu_switch
.hidden cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size cuda_on_cpu_switch, . - cuda_on_cpu_switch
.popsection
)");
#endif

class Fiber {
 public:
  bool ready = true, done = true;

  static Fiber*& current() {
    static thread_local Fiber* running = nullptr;
    return running;
  }

  void start(std::function<void()> body) {
    body_ = std::move(body);
    ready = true;
    done = false;
#if defined(__x86_64__)
    auto top = (reinterpret_cast<uintptr_t>(stack_.get()) + kStackBytes) & ~uintptr_t(15);
    void** slot = reinterpret_cast<void**>(top);
    *--slot = nullptr;  // the stack is aligned as after a call
    *--slot = reinterpret_cast<void*>(&Fiber::entry);
    for (int i = 0; i < 6; ++i) *--slot = nullptr;  // registers
    own_ = slot;
#else
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_.get();
    own_.uc_stack.ss_size = kStackBytes;
    own_.uc_link = nullptr;
    makecontext(&own_, &Fiber::entry, 0);
#endif
  }

  // Runs until it pauses or ends.
  void resume() {
    current() = this;
    change(caller_, own_, stack_.get(), kStackBytes, /*ends=*/false);
    current() = nullptr;
  }

  static void pause() {
    Fiber* const own = current();
    own->change(own->own_, own->caller_, own->caller_stack_, own->caller_stack_bytes_, own->done);
  }

 private:
  static constexpr size_t kStackBytes = 128 << 10;  // an instrumented frame is several times larger

  static void entry() {
    Fiber* const own = current();
    own->entered(nullptr);
    own->body_();
    own->done = true;
    pause();
  }

#if defined(__x86_64__)
  using Context = void*;
  static void swap(Context& from, Context& to) { cuda_on_cpu_switch(&from, to); }
#else
  using Context = ucontext_t;
  static void swap(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

  // An address sanitizer is told of every change of stack.
  void change(Context& from, Context& to, const void* stack, size_t bytes, bool ends) {
    void* frames = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(ends ? nullptr : &frames, stack, bytes);
#else
    (void)stack, (void)bytes, (void)ends;
#endif
    swap(from, to);
    if (&from == &own_) {
      entered(frames);
    } else {
#if defined(__SANITIZE_ADDRESS__)
      __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
#endif
    }
  }

  void entered(void* frames) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(frames, &caller_stack_, &caller_stack_bytes_);
#else
    (void)frames;
#endif
  }

  std::unique_ptr<char[]> stack_{new char[kStackBytes]};
  std::function<void()> body_;
  Context own_{}, caller_{};
  const void* caller_stack_ = nullptr;
  size_t caller_stack_bytes_ = 0;
};

}  // namespace cuda_on_cpu
