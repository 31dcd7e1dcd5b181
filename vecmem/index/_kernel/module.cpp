// The Python module: checks shapes and values, lets go of the interpreter lock, calls.
//
// ValueError: a value or shape that cannot be. TypeError: another dtype, order or type. RuntimeError: a file. Arrays are taken as they are,
// never converted: a copy nobody asked for costs more than the call.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <thread>

#include "search.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace vecmem;

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Labels = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bits = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr unsigned kThreadsMax = 256;

template <class T>
nb::object array_of(std::vector<T>&& values) {
    auto* owned = new std::vector<T>(std::move(values));
    nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return nb::ndarray<nb::numpy, T, nb::ndim<1>>(owned->data(), {owned->size()}, owner).cast();
}

CodeType code_named(const std::string& name) {
    if (name == "int8") return CodeType::kInt8;
    if (name == "float16") return CodeType::kFloat16;
    if (name == "float32") return CodeType::kFloat32;
    if (name == "binary") return CodeType::kBinary;
    throw std::invalid_argument("no code is called " + name);
}

Metric metric_numbered(int value) {
    if (value < 1 || value > 3) throw std::invalid_argument("no metric has number " + std::to_string(value));
    return static_cast<Metric>(value);
}

void check_finite(const float* values, size_t count) {
    // NaN and infinity alone make x - x something else than 0.
    float sum = 0;
    for (size_t i = 0; i < count; ++i) sum += values[i] - values[i];
    if (sum != 0) throw std::invalid_argument("a vector has an element that is not finite");
}

unsigned checked_threads(int64_t threads) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1");
    return static_cast<unsigned>(std::min<int64_t>(threads, kThreadsMax));
}

size_t checked_positive(int64_t value, const char* name) {
    if (value < 1) throw std::invalid_argument(std::string(name) + " must be at least 1");
    return static_cast<size_t>(value);
}

// An arena with the arrays that it points into.
struct PyArena {
    PyArena(int metric, int64_t dimension, int64_t chunk_shift)
        : arena(metric_numbered(metric), checked_positive(dimension, "dimension"),
                chunk_shift < 0 || chunk_shift > 40 ? throw std::invalid_argument("chunk_shift must be between 0 and 40")
                                                    : static_cast<unsigned>(chunk_shift)),
          chunk_rows(size_t{1} << chunk_shift) {}

    void append(Matrix vectors, Vector terms) {
        if (vectors.shape(0) != chunk_rows || vectors.shape(1) != arena.dimension || terms.shape(0) != chunk_rows)
            throw std::invalid_argument("a chunk needs its number of rows, the arena's dimension, and a term for each row");
        arrays.emplace_back(vectors, terms);
        arena.append(vectors.data(), terms.data());
    }

    Arena arena;
    const size_t chunk_rows;
    std::vector<std::pair<Matrix, Vector>> arrays;
};

struct Results {
    std::vector<int64_t> rows, ends;
    std::vector<float> scores;
};

// Runs `search(i)` for every query on up to `threads` threads; the interpreter lock is released.
template <class Search>
nb::tuple run(size_t count, unsigned threads, Search search) {
    Results results;
    {
        nb::gil_scoped_release released;
        std::vector<std::vector<Scored>> found(count);
        std::atomic<size_t> next{0};
        std::mutex mutex;
        std::exception_ptr failure;
        const auto work = [&] {
            try {
                for (size_t i; (i = next.fetch_add(1)) < count;) found[i] = search(i);
            } catch (...) {
                next = count;
                std::lock_guard<std::mutex> lock(mutex);
                failure = std::current_exception();
            }
        };
        std::vector<std::thread> others;
        for (size_t i = 1; i < std::min<size_t>(threads, (count + 3) / 4); ++i) {
            try {
                others.emplace_back(work);
            } catch (const std::system_error&) {
                break;  // fewer threads, the same work
            }
        }
        work();
        for (auto& thread : others) thread.join();
        if (failure) std::rethrow_exception(failure);
        size_t total = 0;
        for (const auto& hits : found) total += hits.size();
        results.rows.reserve(total);
        results.scores.reserve(total);
        results.ends.reserve(count);
        for (const auto& hits : found) {
            for (const Scored& hit : hits) {
                results.rows.push_back(hit.row);
                results.scores.push_back(hit.score);
            }
            results.ends.push_back(static_cast<int64_t>(results.rows.size()));
        }
    }
    return nb::make_tuple(array_of(std::move(results.rows)), array_of(std::move(results.scores)), array_of(std::move(results.ends)));
}

Request request_of(int64_t k, const std::optional<Bits>& allowed, const std::optional<Labels>& extra, double largest_norm) {
    if (std::isnan(largest_norm) || largest_norm < 0) throw std::invalid_argument("largest_norm must be a number of at least 0");
    Request request;
    request.k = checked_positive(k, "k");
    if (allowed) request.allowed = {allowed->data(), static_cast<int64_t>(allowed->shape(0)) * 8};
    if (extra) {
        request.extra = extra->data();
        request.extra_count = extra->shape(0);
    }
    // An empty array may have no data; no bits at all would mean that all are allowed.
    static const uint8_t nothing = 0;
    if (allowed && !request.allowed.bits) request.allowed.bits = &nothing;
    request.largest_norm = static_cast<float>(largest_norm);
    return request;
}

void check_queries(const Matrix& queries, size_t dimension) {
    if (queries.shape(1) != dimension)
        throw std::invalid_argument("queries have dimension " + std::to_string(queries.shape(1)) + ", not " + std::to_string(dimension));
    check_finite(queries.data(), queries.size());
}

nb::tuple search(const Graph& graph, Matrix queries, int64_t k, Labels ef, const PyArena& arena, int64_t rescored, std::optional<Bits> allowed,
                 std::optional<Labels> extra, double largest_norm, int64_t threads) {
    check_queries(queries, graph.codec().dimension);
    const Request request = request_of(k, allowed, extra, largest_norm);
    if (ef.shape(0) != 1 && ef.shape(0) != queries.shape(0)) throw std::invalid_argument("ef has neither one element nor one for each query");
    for (size_t i = 0; i < ef.shape(0); ++i) checked_positive(ef.data()[i], "ef");
    const size_t kept = std::max(request.k, checked_positive(rescored, "rescored"));
    return run(queries.shape(0), checked_threads(threads), [&](size_t i) {
        const auto effort = static_cast<size_t>(ef.data()[ef.shape(0) == 1 ? 0 : i]);
        return search_graph(graph, arena.arena, queries.data() + i * graph.codec().dimension, request, effort, kept);
    });
}

nb::tuple scan_codes(const Graph& graph, Matrix queries, int64_t k, const PyArena& arena, std::optional<Bits> allowed, std::optional<Labels> extra,
                     double largest_norm, int64_t threads) {
    check_queries(queries, graph.codec().dimension);
    const Request request = request_of(k, allowed, extra, largest_norm);
    return run(queries.shape(0), checked_threads(threads),
               [&](size_t i) { return scan_graph(graph, arena.arena, queries.data() + i * graph.codec().dimension, request); });
}

nb::tuple scan(const PyArena& arena, Matrix queries, int64_t k, int64_t row_count, std::optional<Bits> allowed, std::optional<Labels> extra,
               double largest_norm, int64_t threads) {
    check_queries(queries, arena.arena.dimension);
    const Request request = request_of(k, allowed, extra, largest_norm);
    return run(queries.shape(0), checked_threads(threads),
               [&](size_t i) { return scan_arena(arena.arena, queries.data() + i * arena.arena.dimension, request, row_count); });
}

nb::object scores(Vector query, Matrix vectors, int metric) {
    if (query.shape(0) != vectors.shape(1)) throw std::invalid_argument("the query and the vectors differ in dimension");
    const Metric by = metric_numbered(metric);
    std::vector<float> found(vectors.shape(0));
    {
        nb::gil_scoped_release released;
        const double length = exact_length(query.data(), query.shape(0));
        for (size_t i = 0; i < found.size(); ++i)
            found[i] = exact_score(by, query.data(), length, vectors.data() + i * query.shape(0), query.shape(0));
    }
    return array_of(std::move(found));
}

void check_labels(const Matrix& vectors, const Labels& labels, size_t dimension) {
    if (vectors.shape(1) != dimension)
        throw std::invalid_argument("vectors have dimension " + std::to_string(vectors.shape(1)) + ", not " + std::to_string(dimension));
    if (vectors.shape(0) != labels.shape(0)) throw std::invalid_argument("vectors and labels differ in number");
    check_finite(vectors.data(), vectors.size());
}

// The distances of each pair of rows as codes, for tests of the instruction sets.
nb::object code_distances(Matrix a, Matrix b, const std::string& code, int metric, double scale) {
    if (a.shape(0) != b.shape(0) || a.shape(1) != b.shape(1)) throw std::invalid_argument("a and b differ in shape");
    const Codec codec(code_named(code), metric_numbered(metric), a.shape(1), static_cast<float>(scale));
    const DistanceFunction distance = distance_function(instruction_set(), codec.code, codec.metric_);
    const DistanceParams params = codec.params();
    std::vector<char> x(codec.code_bytes()), y(codec.code_bytes());
    std::vector<float> found(a.shape(0));
    for (size_t i = 0; i < found.size(); ++i) {
        codec.encode(a.data() + i * a.shape(1), x.data(), nullptr);
        codec.encode(b.data() + i * b.shape(1), y.data(), nullptr);
        found[i] = distance(x.data(), y.data(), &params);
    }
    return array_of(std::move(found));
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "HNSW graphs over codes, and exact comparison: the native part of vecmem.index.";

    nb::class_<PyArena>(m, "Arena")
        .def(nb::init<int, int64_t, int64_t>(), "metric"_a, "dimension"_a, "chunk_shift"_a)
        .def("append", &PyArena::append, "vectors"_a.noconvert(), "terms"_a.noconvert())
        .def("scan", &scan, "queries"_a.noconvert(), "k"_a, "row_count"_a, "allowed"_a.noconvert() = nb::none(), "extra"_a.noconvert() = nb::none(),
             nb::kw_only(), "largest_norm"_a, "threads"_a = 1);

    nb::class_<Graph>(m, "Graph")
        .def(
            "__init__",
            [](Graph* self, const std::string& code, int metric, int64_t dimension, int64_t connections, int64_t ef_construction, double scale) {
                new (self) Graph({code_named(code), metric_numbered(metric), checked_positive(dimension, "dimension"), checked_positive(connections, "m"),
                                  checked_positive(ef_construction, "ef_construction"), static_cast<float>(scale)});
            },
            "code"_a, "metric"_a, "dimension"_a, "m"_a, "ef_construction"_a, "scale"_a = 1.0)
        .def(
            "add",
            [](Graph& self, Matrix vectors, Labels labels, int64_t threads) {
                check_labels(vectors, labels, self.codec().dimension);
                const unsigned used = checked_threads(threads);
                nb::gil_scoped_release released;
                self.add(vectors.data(), labels.data(), labels.shape(0), used);
            },
            "vectors"_a.noconvert(), "labels"_a.noconvert(), "threads"_a = 1)
        .def(
            "remove",
            [](Graph& self, Labels labels) {
                nb::gil_scoped_release released;
                return self.remove(labels.data(), labels.shape(0));
            },
            "labels"_a.noconvert())
        .def(
            "sweep",
            [](Graph& self, int64_t count_max) {
                const size_t count = checked_positive(count_max, "count_max");
                nb::gil_scoped_release released;
                return self.sweep(count);
            },
            "count_max"_a)
        .def(
            "reserve",
            [](Graph& self, int64_t count) {
                const size_t checked = checked_positive(count, "count");
                nb::gil_scoped_release released;
                self.reserve(checked);
            },
            "count"_a)
        .def("search", &search, "queries"_a.noconvert(), "k"_a, "ef"_a.noconvert(), "arena"_a, "rescored"_a, "allowed"_a.noconvert() = nb::none(),
             "extra"_a.noconvert() = nb::none(), nb::kw_only(), "largest_norm"_a, "threads"_a = 1)
        .def("scan", &scan_codes, "queries"_a.noconvert(), "k"_a, "arena"_a, "allowed"_a.noconvert() = nb::none(),
             "extra"_a.noconvert() = nb::none(), nb::kw_only(), "largest_norm"_a, "threads"_a = 1)
        .def(
            "save",
            [](const Graph& self, const std::string& path) {
                nb::gil_scoped_release released;
                self.save(path);
            },
            "path"_a)
        .def("to_bytes",
             [](const Graph& self) {
                 std::string bytes;
                 {
                     nb::gil_scoped_release released;
                     bytes = self.to_bytes();
                 }
                 return nb::bytes(bytes.data(), bytes.size());
             })
        .def(
            "load",
            [](Graph& self, const std::string& path) {
                nb::gil_scoped_release released;
                self.load(path);
            },
            "path"_a)
        .def(
            "from_bytes",
            [](Graph& self, nb::bytes content) {
                nb::gil_scoped_release released;
                self.from_bytes(content.c_str(), content.size());
            },
            "content"_a)
        .def(
            "holding",
            [](Graph& self, Labels labels) {
                const size_t count = labels.shape(0);
                auto* found = new bool[count];
                nb::capsule owner(found, [](void* p) noexcept { delete[] static_cast<bool*>(p); });
                {
                    nb::gil_scoped_release released;
                    self.holding(labels.data(), count, found);
                }
                return nb::ndarray<nb::numpy, bool, nb::ndim<1>>(found, {count}, owner).cast();
            },
            "labels"_a.noconvert())
        .def("labels",
             [](const Graph& self) {
                 std::vector<int64_t> found;
                 {
                     nb::gil_scoped_release released;
                     found = self.labels();
                 }
                 return array_of(std::move(found));
             })
        .def_prop_ro("node_count", &Graph::node_count)
        .def_prop_ro("live_count", &Graph::live_count)
        .def_prop_ro("unswept_count", &Graph::unswept_count)
        .def_prop_ro("clipped_count", &Graph::clipped_count)
        .def_prop_ro("memory_bytes", &Graph::memory_bytes)
        .def_prop_ro("scale", [](const Graph& self) { return self.params().scale; });

    m.def("scores", &scores, "query"_a.noconvert(), "vectors"_a.noconvert(), "metric"_a);
    m.def("code_distances", &code_distances, "a"_a.noconvert(), "b"_a.noconvert(), "code"_a, "metric"_a, "scale"_a = 1.0);
    m.def("instruction_set", [] { return instruction_set().name; });
    m.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (auto set = kInstructionSets; *set; ++set)
            if ((*set)->is_supported()) names.emplace_back((*set)->name);
        return names;
    });
    m.def(
        "use_instruction_set",
        [](const std::string& name) {
            if (!use_instruction_set(name.c_str())) throw std::invalid_argument("this machine has no instruction set " + name);
        },
        "name"_a);
}
