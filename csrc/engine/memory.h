// Zeroed memory on huge pages where it is large enough to gain from them: weights and activations
// are read all over, and every page costs an entry of the address cache.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastgen {
namespace engine {

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) {
    constexpr size_t kHuge = size_t(2) << 20;
    const size_t alignment = bytes >= kHuge / 2 ? kHuge : 64;
    const size_t size = (bytes + alignment) / alignment * alignment;
    data_ = std::aligned_alloc(alignment, size);
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (alignment == kHuge) madvise(data_, size, MADV_HUGEPAGE);
#endif
    std::memset(data_, 0, size);
  }
  Memory(Memory&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Memory& operator=(Memory&& other) noexcept {
    void* mine = data_;
    data_ = other.data_;
    other.data_ = mine;
    return *this;
  }
  ~Memory() { std::free(data_); }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

}  // namespace engine
}  // namespace fastgen
