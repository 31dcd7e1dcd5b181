// Memory that grows without being copied where the system can remap pages, in huge pages where it gives them.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vecmem {

class Region {
  public:
    Region() = default;
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;
    ~Region() { release(); }

    char* data() const { return data_; }
    size_t size() const { return size_; }

    // Makes the region at least `size` bytes, new ones zero or untouched. Throws bad_alloc, leaving it as it was.
    void grow(size_t size);
    void release() noexcept;

  private:
    char* data_ = nullptr;
    size_t size_ = 0;
};

#if defined(__linux__)

inline void Region::grow(size_t size) {
    constexpr size_t kHuge = size_t{1} << 21;
    const size_t unit = size >= 2 * kHuge ? kHuge : 4096;
    size = (size + unit - 1) / unit * unit;
    if (size <= size_) return;
    // An address range that begins at a multiple of a huge page: pages stay huge when they are moved there.
    char* reserved = static_cast<char*>(mmap(nullptr, size + unit, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (reserved == MAP_FAILED) throw std::bad_alloc();
    char* start = reserved + (unit - reinterpret_cast<size_t>(reserved) % unit) % unit;
    void* mapped = data_ ? mremap(data_, size_, size, MREMAP_MAYMOVE | MREMAP_FIXED, start)
                         : mmap(start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
        munmap(reserved, size + unit);
        throw std::bad_alloc();
    }
    if (start > reserved) munmap(reserved, static_cast<size_t>(start - reserved));
    if (start + size < reserved + size + unit) munmap(start + size, static_cast<size_t>(reserved + unit - start));
    if (unit == kHuge) madvise(start, size, MADV_HUGEPAGE);
    data_ = start;
    size_ = size;
}

inline void Region::release() noexcept {
    if (data_) munmap(data_, size_);
    data_ = nullptr;
    size_ = 0;
}

#else

inline void Region::grow(size_t size) {
    size = (size + 4095) / 4096 * 4096;
    if (size <= size_) return;
    auto* moved = static_cast<char*>(std::aligned_alloc(4096, size));
    if (!moved) throw std::bad_alloc();
    if (data_) std::memcpy(moved, data_, size_);
    std::memset(moved + size_, 0, size - size_);
    std::free(data_);
    data_ = moved;
    size_ = size;
}

inline void Region::release() noexcept {
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
}

#endif

}  // namespace vecmem
