// The Python module: checks shapes and values, lets go of the interpreter lock, calls.

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "arrays.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace vecmem;

CodeType code_named(const std::string& name) {
    if (name == "int8") return CodeType::kInt8;
    if (name == "float16") return CodeType::kFloat16;
    if (name == "float32") return CodeType::kFloat32;
    if (name == "binary") return CodeType::kBinary;
    throw std::invalid_argument("no code is called " + name);
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
    // At the end of a process the interpreter still holds on to some: nothing to tell its user.
    nb::set_leak_warnings(false);
    m.doc() = "HNSW graphs over codes, and exact comparison: the native part of vecmem.index.";

    nb::class_<Graph> graph(m, "Graph");
    bind_searches(m, graph);
    graph
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
        .def_prop_ro("dead_count", &Graph::dead_count)
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
