// Searches beside insertion, removal, sweeping, growth and saving, for ThreadSanitizer and AddressSanitizer: `stress <rounds> <seed>`.
//
// Checks what holds meanwhile: rows that stay are found by their own vectors, hits pass the filter, a graph saved beside it all loads; and after
// each round that no removed row comes back. Then the same of codes beside a graph.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
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
                // Not as many nodes as labels: those of equal codes share one.
                expect(copy.live_count() >= kKept && copy.labels().size() == copy.live_count(), "a saved graph has what stays");
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

// Pieces of codes come and go and lose rows beside searches of them.
void run_codes(Metric metric, Storage storage, unsigned rounds, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> rows(kRows * kDimension), terms(kRows);
    std::vector<uint16_t> halves(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
        halves[i] = float_to_half(normal(random));
        rows[i] = half_to_float(halves[i]);
    }
    for (size_t i = 0; i < kRows; ++i) {
        const double length = exact_length(&rows[i * kDimension], kDimension);
        terms[i] = static_cast<float>(metric == Metric::kCosine ? 1 / length : length * length);
    }
    Arena arena(metric, kDimension, kChunkShift, storage);
    for (size_t i = 0; i < kRows; i += size_t{1} << kChunkShift)
        arena.append(storage == Storage::kFloat16 ? static_cast<const void*>(&halves[i * kDimension]) : &rows[i * kDimension], &terms[i]);
    std::vector<int64_t> numbers(kRows);
    for (size_t i = 0; i < kRows; ++i) numbers[i] = static_cast<int64_t>(i);
    Graph graph({CodeType::kInt8, metric, kDimension, 8, 40, 0.03f});
    graph.add(rows.data(), numbers.data(), kKept, 2);

    constexpr size_t kPiece = 512;
    using Pieces = std::vector<std::shared_ptr<Codes>>;
    for (unsigned round = 0; round < rounds; ++round) {
        std::mutex mutex;
        auto pieces = std::make_shared<const Pieces>();
        std::vector<std::atomic<bool>> gone(kRows);
        std::atomic<size_t> end{kKept};  // rows from kKept up to here are in pieces
        std::atomic<bool> stop{false};
        const auto look = [&] {
            std::lock_guard<std::mutex> lock(mutex);
            return pieces;
        };
        std::vector<std::thread> searchers;
        for (unsigned t = 0; t < 2; ++t) {
            searchers.emplace_back([&, t] {
                std::mt19937 own(seed * 17 + round * 5 + t);
                while (!stop) {
                    const size_t limit = end;
                    const size_t row = own() % limit;
                    std::vector<char> was_gone(kRows);
                    for (size_t i = 0; i < kRows; ++i) was_gone[i] = gone[i];
                    const auto seen = look();
                    std::vector<const Codes*> coded;
                    for (const auto& piece : *seen) coded.push_back(piece.get());
                    Request request;
                    request.k = 3;
                    request.largest_norm = 20;
                    request.coded = coded.data();
                    request.coded_count = coded.size();
                    const auto found = scan_graph(graph, arena, &rows[row * kDimension], request).hits;
                    expect(found.size() >= 3, "a search finds something");
                    for (const auto& hit : found) expect(!was_gone[static_cast<size_t>(hit.row)], "no discarded row is found");
                    // Every third row stays.
                    if (row < kKept || row % 3 == 0) expect(found[0].row == numbers[row], "a coded row is nearest to itself");
                }
            });
        }
        std::thread discarder([&] {
            std::mt19937 own(seed * 13 + round);
            while (!stop) {
                const size_t row = kKept + own() % (kRows - kKept);
                if (row >= end || row % 3 == 0) continue;
                const auto seen = look();
                for (const auto& piece : *seen) piece->discard(&numbers[row], 1);
                gone[row] = true;
            }
        });
        for (size_t start = kKept; start < kRows; start += kPiece) {
            const size_t count = std::min(kPiece, kRows - start);
            auto grown = std::make_shared<Pieces>(*look());
            grown->push_back(std::make_shared<Codes>(arena, &numbers[start], count));
            {
                std::lock_guard<std::mutex> lock(mutex);
                pieces = std::move(grown);
            }
            end = start + count;
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
        stop = true;
        for (auto& thread : searchers) thread.join();
        discarder.join();
    }
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
    run_codes(Metric::kCosine, Storage::kFloat32, rounds, seed);
    run_codes(Metric::kEuclidean, Storage::kFloat16, rounds, seed);
    if (failures) return 1;
    std::printf("ok\n");
    return 0;
}
