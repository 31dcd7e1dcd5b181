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

    // Whether `offer` would keep a row of that rank; what is not a number it does not.
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

// Compares rows and the request's extra ones exactly.
std::vector<Scored> compare(const ExactQuery& exact, const Request& request, std::vector<int64_t> rows) {
    const int64_t row_count = exact.row_count();
    std::copy_if(request.extra, request.extra + request.extra_count, std::back_inserter(rows),
                 [&](int64_t row) { return row < 0 || row >= row_count || request.allowed(row); });
    // A row of the graph may be moving there from the extra ones; it must not count twice.
    if (request.extra_count) {
        std::sort(rows.begin(), rows.end());
        rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    }
    Best best(request.k, 2 * exact.rank_error(request.largest_norm));
    constexpr size_t kAhead = 2;
    for (size_t i = 0; i < rows.size(); ++i) {
        if (rows[i] < 0 || rows[i] >= row_count) throw std::out_of_range("row " + std::to_string(rows[i]) + " is not in the arena");
        if (i + kAhead < rows.size() && rows[i + kAhead] >= 0 && rows[i + kAhead] < row_count) exact.prefetch(rows[i + kAhead]);
        best.offer(exact.rank(rows[i]), rows[i]);
    }
    std::vector<int64_t> nearest = best.rows();
    return exact.best(nearest, request.k);
}

struct Encoded {
    Encoded(const Graph& graph, const float* query) : code(graph.codec().code_bytes()) {
        graph.codec().encode_query(query, code.data(), &params, &scale, &residual);
    }
    std::vector<char> code;
    DistanceParams params;
    float scale, residual;
};

void check(const Graph& graph, const Arena& arena) {
    if (graph.params().dimension != arena.dimension || graph.params().metric != arena.metric)
        throw std::invalid_argument("the graph and the arena differ in dimension or metric");
}

}  // namespace

Answer search_graph(const Graph& graph, const Arena& arena, const float* query, const Request& request, size_t ef, size_t rescored) {
    check(graph, arena);
    const Encoded encoded(graph, query);
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
    answer.hits = compare(ExactQuery(arena, query), request, std::move(rows));
    return answer;
}

Answer scan_graph(const Graph& graph, const Arena& arena, const float* query, const Request& request) {
    check(graph, arena);
    if (graph.params().code != CodeType::kInt8) throw std::invalid_argument("only int8 codes bound the error of a scan");
    const Encoded encoded(graph, query);
    const ExactQuery exact(arena, query);
    const bool cosine = graph.params().metric == Metric::kCosine, euclidean = graph.params().metric == Metric::kEuclidean;
    // |q.x - q'.x'| <= |q| |x - x'| + |q - q'| |x'|, and |x'| <= |x| + |x - x'|; in the same way for |x|^2.
    const double query_length = cosine ? 1.0 : exact.length(), row_length = cosine ? 1.0 : request.largest_norm;
    const double cut = graph.residual_max();
    double error = query_length * cut + encoded.residual * (row_length + cut);
    if (euclidean) error = 2 * error + cut * (2 * row_length + cut);
    const double unit = euclidean ? double{graph.params().scale} * graph.params().scale : double{graph.params().scale} * encoded.scale;
    const double rounding = 2e-6 * (euclidean ? row_length * row_length + 2 * query_length * row_length : query_length * row_length);
    const auto factor = static_cast<float>(-unit);
    Best best(request.k, static_cast<float>(2 * (error + rounding) * 1.001) + 2 * exact.rank_error(request.largest_norm));
    Answer answer;
    const Snapshot* snapshot = request.allowed.snapshot;
    answer.compared = graph.scan(encoded.code.data(), encoded.params, request.allowed, [&](int64_t label, float distance) {
        const float rank = distance * factor;
        if (best.wants(rank) && (!snapshot || snapshot->sees(label))) best.offer(rank, label);
    });
    answer.hits = compare(exact, request, best.rows());
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
    answer.hits = compare(exact, request, best.rows());
    return answer;
}

}  // namespace vecmem
