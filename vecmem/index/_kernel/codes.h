// Codes of rows that no graph has yet, in one piece of memory that a scan streams through: a fifth of what comparing the rows costs.
//
// int8 on a scale of the piece's own, so that nothing is clipped, and with the bound on rounding that makes a scan exact (search.cpp).
//
// THREADS. The constructor writes everything, before another thread has the object; then only marks change, which are atomic. `discard` and
// scans run beside each other, as many as like. A scan that began before a row was discarded may still visit it: whoever gives the row's number out
// again has to wait for those searches (vecmem.index.rows does).
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "arena.h"
#include "codec.h"

namespace vecmem {

class Codes {
  public:
    // Of `rows`, rising, whose vectors are written and do not change meanwhile. Throws invalid_argument for rows that do not rise and
    // out_of_range for those that the arena lacks.
    Codes(const Arena& arena, const int64_t* rows, size_t count);

    // Takes rows out for good; those that are not here are passed over. Returns how many were.
    size_t discard(const int64_t* rows, size_t count);

    // Calls visit(row, distance) for all rows but those discarded and those for which wanted(row) is false. `code` and `params` come from
    // codec().encode_query.
    template <class Wanted, class Visit>
    void scan(const char* code, const DistanceParams& params, Wanted wanted, Visit visit) const {
        // Asked for ahead, since the processor's own prefetching stops at the end of a page; of the last rows what lies there is not theirs.
        constexpr size_t kAhead = 8;
        const char* at = codes_.get();
        for (size_t i = 0; i < rows_.size(); ++i, at += stride_) {
            for (size_t byte = 0; byte < stride_; byte += 64) __builtin_prefetch(at + kAhead * stride_ + byte);
            if (!discarded_[i].load(std::memory_order_acquire) && wanted(rows_[i])) visit(rows_[i], distance_(code, at, &params));
        }
    }

    const Codec& codec() const { return *codec_; }
    size_t size() const { return rows_.size(); }
    // Largest length cut off from a vector by rounding.
    float residual_max() const { return residual_max_; }
    size_t memory_bytes() const { return rows_.size() * (stride_ + sizeof(int64_t) + 1); }

  private:
    const std::vector<int64_t> rows_;
    std::unique_ptr<const Codec> codec_;
    size_t stride_ = 0;
    DistanceFunction distance_;
    std::unique_ptr<char[]> codes_;
    std::unique_ptr<std::atomic<bool>[]> discarded_;
    float residual_max_ = 0;
};

}  // namespace vecmem
