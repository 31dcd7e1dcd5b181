#include "arena.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace vecmem {

namespace {

double sum_of(const double* lanes) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

struct Products {
    double dot, squares;
};

Products products(const float* a, const float* b, size_t count) {
    double dot[8] = {}, squares[8] = {};
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        for (size_t j = 0; j < 8; ++j) {
            const double x = a[i + j], y = b[i + j];
            dot[j] += x * y;
            squares[j] += y * y;
        }
    }
    for (size_t j = 0; i < count; ++i, ++j) {
        const double x = a[i], y = b[i];
        dot[j] += x * y;
        squares[j] += y * y;
    }
    return {sum_of(dot), sum_of(squares)};
}

double squared_difference(const float* a, const float* b, size_t count) {
    double lanes[8] = {};
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        for (size_t j = 0; j < 8; ++j) {
            const double difference = double{a[i + j]} - double{b[i + j]};
            lanes[j] += difference * difference;
        }
    }
    for (size_t j = 0; i < count; ++i, ++j) {
        const double difference = double{a[i]} - double{b[i]};
        lanes[j] += difference * difference;
    }
    return sum_of(lanes);
}

}  // namespace

double exact_length(const float* vector, size_t dimension) {
    return std::sqrt(products(vector, vector, dimension).squares);
}

float exact_score(Metric metric, const float* query, double query_length, const float* row, size_t dimension) {
    if (metric == Metric::kEuclidean) return static_cast<float>(std::sqrt(squared_difference(row, query, dimension)));
    const Products p = products(query, row, dimension);
    if (metric == Metric::kDot) return static_cast<float>(p.dot);
    const double lengths = std::sqrt(p.squares) * query_length;
    if (!(lengths > 0)) return 0;
    // max first, so that what is not a number becomes -1.
    return static_cast<float>(std::min(1.0, std::max(-1.0, p.dot / lengths)));
}

Arena::Arena(Metric m, size_t dim, unsigned chunk_shift, Storage stored)
    : metric(m), dimension(dim), storage(stored), chunk_shift_(chunk_shift), row_bytes_(dim * (stored == Storage::kFloat16 ? 2 : 4)), chunks_(std::make_shared<Chunks>()), set_(instruction_set()) {}

void Arena::append(const void* vectors, const float* terms) {
    auto grown = std::make_shared<Chunks>(*chunks());
    grown->push_back({vectors, terms});
    std::lock_guard<std::mutex> lock(mutex_);
    chunks_ = std::move(grown);
}

void Arena::gather(const int64_t* rows, size_t count, float* out) const {
    const auto table = chunks();
    const auto row_count = static_cast<int64_t>(table->size()) << chunk_shift_;
    for (size_t i = 0; i < count; ++i, out += dimension) {
        if (rows[i] < 0 || rows[i] >= row_count) throw std::out_of_range("row " + std::to_string(rows[i]) + " is not in the arena");
        const auto within = static_cast<size_t>(rows[i]) & ((size_t{1} << chunk_shift_) - 1);
        const char* vector = static_cast<const char*>((*table)[static_cast<size_t>(rows[i] >> chunk_shift_)].vectors) + within * row_bytes_;
        if (storage == Storage::kFloat16)
            set_.widen(reinterpret_cast<const uint16_t*>(vector), out, dimension);
        else
            std::memcpy(out, vector, row_bytes_);
    }
}

std::shared_ptr<const Arena::Chunks> Arena::chunks() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return chunks_;
}

ExactQuery::ExactQuery(const Arena& arena, const float* query)
    : arena_(arena), query_(query), chunks_(arena.chunks()), scan_query_(query, query + arena.dimension),
      length_(exact_length(query, arena.dimension)) {
    if (arena.metric == Metric::kCosine && length_ > 0)
        for (float& element : scan_query_) element = static_cast<float>(element / length_);
}

const char* ExactQuery::at(int64_t row) const {
    const auto chunk = static_cast<size_t>(row >> arena_.chunk_shift_);
    const auto within = static_cast<size_t>(row) & ((size_t{1} << arena_.chunk_shift_) - 1);
    return static_cast<const char*>((*chunks_)[chunk].vectors) + within * arena_.row_bytes_;
}

float ExactQuery::term(int64_t row) const {
    const auto chunk = static_cast<size_t>(row >> arena_.chunk_shift_);
    return (*chunks_)[chunk].terms[static_cast<size_t>(row) & ((size_t{1} << arena_.chunk_shift_) - 1)];
}

float ExactQuery::rank(int64_t row) const {
    const float product = arena_.storage == Storage::kFloat16
                              ? arena_.set_.dot_half(scan_query_.data(), reinterpret_cast<const uint16_t*>(at(row)), arena_.dimension)
                              : arena_.set_.dot(scan_query_.data(), reinterpret_cast<const float*>(at(row)), arena_.dimension);
    switch (arena_.metric) {
        case Metric::kCosine: return product * term(row);
        case Metric::kDot: return product;
        case Metric::kEuclidean: return 2.0f * product - term(row);
    }
    return 0;
}

float ExactQuery::rank_error(float norm) const {
    const auto length = static_cast<float>(length_);
    // As vecmem.index.metric.rank_errors, for the longest row.
    switch (arena_.metric) {
        case Metric::kCosine: return 4e-6f;
        case Metric::kDot: return 4e-6f * length * norm;
        // The square of the query's length is not part of a rank, but of the score, whose rounding makes ties.
        case Metric::kEuclidean: return 4e-6f * (length + norm) * (length + norm);
    }
    return 0;
}

float ExactQuery::score(int64_t row) const {
    const auto* vector = reinterpret_cast<const float*>(at(row));
    if (arena_.storage == Storage::kFloat16) {
        widened_.resize(arena_.dimension);
        arena_.set_.widen(reinterpret_cast<const uint16_t*>(at(row)), widened_.data(), arena_.dimension);
        vector = widened_.data();
    }
    return exact_score(arena_.metric, query_, length_, vector, arena_.dimension);
}

void ExactQuery::prefetch(int64_t row) const {
    const char* start = at(row);
    for (size_t i = 0; i < arena_.row_bytes_; i += 64) __builtin_prefetch(start + i);
}

std::vector<Scored> ExactQuery::best(std::vector<int64_t>& rows, size_t k) const {
    std::vector<Scored> found;
    found.reserve(rows.size());
    const bool euclidean = arena_.metric == Metric::kEuclidean;
    constexpr float kWorst = std::numeric_limits<float>::infinity();
    for (int64_t row : rows) {
        const float by = score(row);
        // Rows are the owner's; one with an element that is not finite must not upset the order.
        found.push_back({std::isnan(by) ? (euclidean ? kWorst : -kWorst) : by, row});
    }
    std::sort(found.begin(), found.end(), [&](const Scored& a, const Scored& b) {
        if (a.score != b.score) return euclidean ? a.score < b.score : a.score > b.score;
        return a.row < b.row;
    });
    found.erase(std::unique(found.begin(), found.end(), [](const Scored& a, const Scored& b) { return a.row == b.row; }), found.end());
    if (found.size() > k) {
        size_t end = k;
        while (end < found.size() && found[end].score == found[k - 1].score) ++end;
        found.resize(end);
    }
    return found;
}

}  // namespace vecmem
