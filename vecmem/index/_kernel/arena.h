// Exact comparison: ranks in float32, final scores in float64, over rows of vectors, float32 or float16, in chunks that never move.
//
// The chunks belong to vecmem.index.arena.Arena, which writes a row before anyone may see it; here they are only read.
// Final scores depend on the query and the row alone, not on where a row lies, which set of instructions computes ranks, or how a row was
// found: eight partial sums in fixed order, products of float32 (which holds every float16) exact in float64, no contraction to fused operations. So equal vectors have
// equal scores, on every machine.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "distance.h"

namespace vecmem {

struct Scored {
    float score;  // as clients see it
    int64_t row;
};

enum class Storage { kFloat32, kFloat16 };

class ExactQuery;

class Arena {
  public:
    // Chunks of 2^`chunk_shift` rows each.
    Arena(Metric metric, size_t dimension, unsigned chunk_shift, Storage storage);

    // Adds a chunk: rows of `dimension` elements as stored, and for each row what vecmem.index.metric.row_terms says of it.
    void append(const void* vectors, const float* terms);

    // Copies vectors, shape (count, dimension), as float32. Throws out_of_range for rows that there is no room for.
    void gather(const int64_t* rows, size_t count, float* out) const;

    const Metric metric;
    const size_t dimension;
    const Storage storage;

  private:
    friend class ExactQuery;
    struct Chunk {
        const void* vectors;
        const float* terms;
    };
    using Chunks = std::vector<Chunk>;

    std::shared_ptr<const Chunks> chunks() const;

    const unsigned chunk_shift_;
    const size_t row_bytes_;
    mutable std::mutex mutex_;  // guards the pointer; a search keeps the table that it took
    std::shared_ptr<const Chunks> chunks_;
    const InstructionSet& set_;
};

// One query against an arena: a snapshot of its chunks. For one thread.
class ExactQuery {
  public:
    // `query`: `dimension` finite elements, kept until the end of the ExactQuery.
    ExactQuery(const Arena& arena, const float* query);

    // Rows that the arena has room for.
    int64_t row_count() const { return static_cast<int64_t>(chunks_->size()) << arena_.chunk_shift_; }

    // Higher is nearer, for every metric; float32, errors up to `rank_error`.
    float rank(int64_t row) const;

    // How far a rank may lie from the true one, generously.
    float rank_error(float largest_row_norm) const;

    // As vecmem.index.metric.scores.
    float score(int64_t row) const;

    void prefetch(int64_t row) const;

    // The `k` nearest of `rows`, and all that tie with the last of them, nearest first, ties in order of rows; each row once.
    std::vector<Scored> best(std::vector<int64_t>& rows, size_t k) const;

    double length() const { return length_; }

  private:
    const char* at(int64_t row) const;
    float term(int64_t row) const;

    const Arena& arena_;
    const float* query_;
    std::shared_ptr<const Arena::Chunks> chunks_;
    std::vector<float> scan_query_;      // of unit length under cosine
    mutable std::vector<float> widened_;  // a row of float16 while its score is computed
    double length_;
};

// float32 elements of one score, without a row in an arena; shapes as in ExactQuery::score.
float exact_score(Metric metric, const float* query, double query_length, const float* row, size_t dimension);
double exact_length(const float* vector, size_t dimension);

}  // namespace vecmem
