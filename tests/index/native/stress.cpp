// Searches beside insertion, removal, sweeping, growth and saving, for ThreadSanitizer and AddressSanitizer: `stress <rounds> <seed>`.
//
// Checks what holds meanwhile: rows that stay are found by their own vectors, hits pass the filter, a graph saved beside it all loads; and after
// each round that no removed row comes back.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "search.h"

using namespace vecmem;

namespace {

constexpr size_t kDimension = 24;
constexpr size_t kChunkShift = 8;
constexpr size_t kRows = 4096;
constexpr size_t kKept = 256;  // rows 0 to 255 stay

std::atomic<int> failures{0};

void expect(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "failed: %s\n", what);
    ++failures;
}

void run(CodeType code, Metric metric, unsigned rounds, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> rows(kRows * kDimension), terms(kRows);
    for (auto& x : rows) x = normal(random);
    // Of the rows that come and go, a third are equal to others; some of these to rows that stay.
    for (size_t i = kKept; i < kRows; i += 3) std::copy_n(&rows[i % 5 * 40 * kDimension], kDimension, &rows[i * kDimension]);
    for (size_t i = 0; i < kRows; ++i) {
        const double length = exact_length(&rows[i * kDimension], kDimension);
        terms[i] = static_cast<float>(metric == Metric::kCosine ? 1 / length : metric == Metric::kDot ? 1 : length * length);
    }
    Arena arena(metric, kDimension, kChunkShift, Storage::kFloat32);
    for (size_t i = 0; i < kRows; i += size_t{1} << kChunkShift) arena.append(&rows[i * kDimension], &terms[i]);

    Graph graph({code, metric, kDimension, 8, 40, 0.03f});
    std::vector<int64_t> labels(kRows);
    for (size_t i = 0; i < kRows; ++i) labels[i] = static_cast<int64_t>(i);
    graph.add(rows.data(), labels.data(), kKept, 2);

    std::atomic<size_t> searches{0}, selves{0};
    for (unsigned round = 0; round < rounds; ++round) {
        std::atomic<bool> stop{false};
        std::vector<std::thread> searchers;
        for (unsigned t = 0; t < 2; ++t) {
            searchers.emplace_back([&, t] {
                std::mt19937 own(seed * 31 + round * 7 + t);
                std::vector<uint8_t> bits(kRows / 8);
                for (auto& byte : bits) byte = static_cast<uint8_t>(own());
                while (!stop) {
                    const size_t row = own() % kKept;
                    const float* query = &rows[row * kDimension];
                    Request request;
                    request.k = 5;
                    request.largest_norm = 20;
                    auto found = search_graph(graph, arena, query, request, 64, 20).hits;
                    expect(!found.empty() && found.size() <= kRows, "a search finds something");
                    ++searches;
                    for (const auto& hit : found)
                        if (hit.row == labels[row] && hit.score == found[0].score) ++selves;
                    request.allowed = {bits.data(), static_cast<int64_t>(kRows)};
                    for (const auto& hit : search_graph(graph, arena, query, request, 32, 20).hits) expect(request.allowed(hit.row), "hits pass the filter");
                    request.compared_max = 40;
                    for (const auto& hit : search_graph(graph, arena, query, request, 32, 20).hits) expect(request.allowed(hit.row), "hits pass the filter");
                    if (code == CodeType::kInt8) {
                        for (const auto& hit : scan_graph(graph, arena, query, request).hits) expect(request.allowed(hit.row), "hits pass the filter");
                    }
                }
            });
        }
        std::thread saver([&] {
            while (!stop) {
                const std::string bytes = graph.to_bytes();
                Graph copy(graph.params());
                copy.from_bytes(bytes.data(), bytes.size());
                expect(copy.live_count() <= copy.node_count(), "a saved graph loads");
            }
        });
        // Rows come in slices and go again, beside the searches; the graph grows past its first capacity on the way.
        for (size_t start = kKept; start < kKept + 1024; start += 128) {
            graph.add(&rows[start * kDimension], &labels[start], 128, 2);
            graph.remove(&labels[start], 64);
            graph.sweep(1000);
        }
        graph.remove(&labels[kKept], 1024);
        graph.sweep(10'000);
        stop = true;
        for (auto& thread : searchers) thread.join();
        saver.join();
        expect(graph.live_count() == kKept, "what was removed is gone");
        Request request;
        request.k = kRows;
        request.largest_norm = 20;
        for (const auto& hit : search_graph(graph, arena, rows.data(), request, kRows, kRows).hits) expect(hit.row < static_cast<int64_t>(kKept), "no removed row comes back");
    }
    // Under dot a longer row may be nearer, and signs alone tell few rows apart; else a graph leads nearly every row to itself.
    if (code != CodeType::kBinary && metric != Metric::kDot) expect(selves * 100 >= searches * 97, "a row is nearest to itself");
}

}  // namespace

int main(int argc, char** argv) {
    const auto rounds = static_cast<unsigned>(argc > 1 ? std::atoi(argv[1]) : 2);
    const auto seed = static_cast<unsigned>(argc > 2 ? std::atoi(argv[2]) : 1);
    std::printf("rounds %u seed %u\n", rounds, seed);
    run(CodeType::kInt8, Metric::kCosine, rounds, seed);
    run(CodeType::kInt8, Metric::kEuclidean, rounds, seed);
    run(CodeType::kFloat32, Metric::kEuclidean, rounds, seed);
    run(CodeType::kFloat16, Metric::kDot, rounds, seed);
    run(CodeType::kBinary, Metric::kCosine, rounds, seed);
    if (failures) return 1;
    std::printf("ok\n");
    return 0;
}
