#include "search.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <stdexcept>

namespace vecmem {

namespace {

// Keeps every row whose rank lies within `margin` below that of the k-th best.
class Best {
  public:
    Best(size_t k, float margin) : k_(k), margin_(margin) {}

    // Whether a row of that rank can be kept as things stand; not what is not a number.
    bool wants(float rank) const { return rank >= threshold_; }

    void offer(float rank, int64_t row) {
        if (!wants(rank)) return;
        kept_.push_back({rank, row});
        if (ranks_.size() == k_) {
            if (rank <= ranks_.front()) return;
            std::pop_heap(ranks_.begin(), ranks_.end(), std::greater<>());
            ranks_.back() = rank;
        } else {
            ranks_.push_back(rank);
        }
        std::push_heap(ranks_.begin(), ranks_.end(), std::greater<>());
        if (ranks_.size() < k_) return;
        threshold_ = ranks_.front() - margin_;
        // The threshold rises as better rows come: let those below go before they outnumber the rest by far.
        if (kept_.size() > 16 * k_ + 1024) drop();
    }

    std::vector<int64_t> rows() {
        drop();
        std::vector<int64_t> found;
        found.reserve(kept_.size());
        for (const auto& kept : kept_) found.push_back(kept.row);
        return found;
    }

  private:
    struct Kept {
        float rank;
        int64_t row;
    };

    void drop() {
        kept_.erase(std::remove_if(kept_.begin(), kept_.end(), [&](const Kept& kept) { return kept.rank < threshold_; }), kept_.end());
    }

    const size_t k_;
    const float margin_;
    float threshold_ = -std::numeric_limits<float>::infinity();
    std::vector<Kept> kept_;
    std::vector<float> ranks_;  // the k best, worst first
};

// A query as a code, and how distances from it become ranks.
struct Encoded {
    Encoded(const Codec& codec, const float* query) : code(codec.code_bytes()) {
        codec.encode_query(query, code.data(), &params, &scale, &residual);
        const double step = codec.scale;
        factor = static_cast<float>(-(codec.metric_ == Metric::kEuclidean ? step * step : step * scale));
    }

    // How far the rank by int8 codes may lie from the true one, where `cut` is the largest length that rounding cut off from a row.
    double error(const ExactQuery& exact, Metric metric, double largest_norm, double cut) const {
        const bool cosine = metric == Metric::kCosine, euclidean = metric == Metric::kEuclidean;
        // |q.x - q'.x'| <= |q| |x - x'| + |q - q'| |x'|, and |x'| <= |x| + |x - x'|; in the same way for |x|^2.
        const double query_length = cosine ? 1.0 : exact.length(), row_length = cosine ? 1.0 : largest_norm;
        double bound = query_length * cut + residual * (row_length + cut);
        if (euclidean) bound = 2 * bound + cut * (2 * row_length + cut);
        return bound + 2e-6 * (euclidean ? row_length * row_length + 2 * query_length * row_length : query_length * row_length);
    }

    std::vector<char> code;
    DistanceParams params;
    float scale, residual, factor;
};

float margin(const ExactQuery& exact, const Request& request, double error) {
    return static_cast<float>(2 * error * 1.001) + 2 * exact.rank_error(request.largest_norm);
}

// Appends those of the coded rows that can be among the k nearest of them.
void add_coded(const ExactQuery& exact, const Arena& arena, const float* query, const Request& request, std::vector<int64_t>& rows) {
    if (!request.coded_count) return;
    std::vector<Encoded> encoded;
    encoded.reserve(request.coded_count);
    double error = 0;
    for (size_t i = 0; i < request.coded_count; ++i) {
        const Codec& codec = request.coded[i]->codec();
        if (codec.dimension != arena.dimension || codec.metric_ != arena.metric)
            throw std::invalid_argument("the codes and the arena differ in dimension or metric");
        encoded.emplace_back(codec, query);
        error = std::max(error, encoded[i].error(exact, arena.metric, request.largest_norm, request.coded[i]->residual_max()));
    }
    Best best(request.k, margin(exact, request, error));
    // Few come so near that it matters whether the snapshot sees them.
    Allowed bits = request.allowed;
    bits.snapshot = nullptr;
    for (size_t i = 0; i < request.coded_count; ++i)
        request.coded[i]->scan(encoded[i].code.data(), encoded[i].params, bits, [&](int64_t row, float distance) {
            const float rank = distance * encoded[i].factor;
            if (best.wants(rank) && request.allowed(row)) best.offer(rank, row);
        });
    const std::vector<int64_t> found = best.rows();
    rows.insert(rows.end(), found.begin(), found.end());
}

// Compares rows, and the request's coded and extra ones, exactly.
std::vector<Scored> compare(const ExactQuery& exact, const Arena& arena, const float* query, const Request& request, std::vector<int64_t> rows) {
    const int64_t row_count = exact.row_count();
    add_coded(exact, arena, query, request, rows);
    // A row that moves into the graph is among the others as well; it must not count twice.
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    Best best(request.k, 2 * exact.rank_error(request.largest_norm));
    constexpr size_t kAhead = 2;
    const auto check = [&](int64_t row) {
        if (row < 0 || row >= row_count) throw std::out_of_range("row " + std::to_string(row) + " is not in the arena");
    };
    for (size_t i = 0; i < rows.size(); ++i) {
        check(rows[i]);
        if (i + kAhead < rows.size() && rows[i + kAhead] < row_count) exact.prefetch(rows[i + kAhead]);
        best.offer(exact.rank(rows[i]), rows[i]);
    }
    for (size_t i = 0; i < request.extra_count; ++i) {
        const int64_t row = request.extra[i];
        check(row);
        if (i + kAhead < request.extra_count)
            // Rows in order come by themselves.
            if (const int64_t ahead = request.extra[i + kAhead]; ahead != row + int64_t{kAhead} && ahead >= 0 && ahead < row_count) exact.prefetch(ahead);
        if (!request.allowed(row)) continue;
        const float rank = exact.rank(row);
        if (best.wants(rank) && !std::binary_search(rows.begin(), rows.end(), row)) best.offer(rank, row);
    }
    std::vector<int64_t> nearest = best.rows();
    return exact.best(nearest, request.k);
}

void check(const Graph& graph, const Arena& arena) {
    if (graph.params().dimension != arena.dimension || graph.params().metric != arena.metric)
        throw std::invalid_argument("the graph and the arena differ in dimension or metric");
}

}  // namespace

Answer search_graph(const Graph& graph, const Arena& arena, const float* query, const Request& request, size_t ef, size_t rescored) {
    check(graph, arena);
    const Encoded encoded(graph.codec(), query);
    Answer answer;
    bool gave_up = false;
    const size_t compared_max = request.allowed.bits ? request.compared_max : std::numeric_limits<size_t>::max();
    std::vector<int64_t> rows = graph.search(encoded.code.data(), encoded.params, std::max(ef, request.k), rescored, request.allowed, compared_max,
                                             &answer.compared, &gave_up);
    if (gave_up && graph.params().code == CodeType::kInt8) {
        const size_t compared = answer.compared;
        answer = scan_graph(graph, arena, query, request);
        answer.compared += compared;
        return answer;
    }
    if (gave_up) {
        rows = graph.labels(request.allowed);
        answer.compared += rows.size();
    }
    answer.hits = compare(ExactQuery(arena, query), arena, query, request, std::move(rows));
    return answer;
}

Answer scan_graph(const Graph& graph, const Arena& arena, const float* query, const Request& request) {
    check(graph, arena);
    if (graph.params().code != CodeType::kInt8) throw std::invalid_argument("only int8 codes bound the error of a scan");
    const Encoded encoded(graph.codec(), query);
    const ExactQuery exact(arena, query);
    Best best(request.k, margin(exact, request, encoded.error(exact, arena.metric, request.largest_norm, graph.residual_max())));
    Answer answer;
    const Snapshot* snapshot = request.allowed.snapshot;
    answer.compared = graph.scan(encoded.code.data(), encoded.params, request.allowed, [&](int64_t label, float distance) {
        const float rank = distance * encoded.factor;
        if (best.wants(rank) && (!snapshot || snapshot->sees(label))) best.offer(rank, label);
    });
    answer.hits = compare(exact, arena, query, request, best.rows());
    return answer;
}

Answer scan_arena(const Arena& arena, const float* query, const Request& request, int64_t row_count) {
    const ExactQuery exact(arena, query);
    if (row_count < 0 || row_count > exact.row_count()) throw std::out_of_range("more rows than the arena has");
    Best best(request.k, 2 * exact.rank_error(request.largest_norm));
    Answer answer;
    if (!request.allowed.bits) {
        answer.compared = static_cast<size_t>(row_count);
        for (int64_t row = 0; row < row_count; ++row)
            if (request.allowed(row)) best.offer(exact.rank(row), row);
    } else {
        constexpr size_t kBlock = 512, kAhead = 2;
        int64_t block[kBlock];
        int64_t from = 0;
        while (const size_t found = request.allowed.next(&from, row_count, block, kBlock)) {
            size_t size = 0;
            for (size_t i = 0; i < found; ++i) {
                block[size] = block[i];
                size += request.allowed(block[i]);
            }
            answer.compared += size;
            for (size_t i = 0; i < size; ++i) {
                if (i + kAhead < size) exact.prefetch(block[i + kAhead]);
                best.offer(exact.rank(block[i]), block[i]);
            }
        }
    }
    answer.hits = compare(exact, arena, query, request, best.rows());
    return answer;
}

}  // namespace vecmem
