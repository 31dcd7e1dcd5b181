// Arena and the searches as Python sees them: what belongs to a query is taken apart, the interpreter lock let go, and all queries of a call
// answered together.

#include <nanobind/stl/string.h>

#include <cmath>
#include <optional>

#include "arrays.h"
#include "pool.h"
#include "search.h"

namespace vecmem {

namespace {

using namespace nb::literals;

// So many coded rows take as long to scan as it takes to wake a helper.
constexpr size_t kCodedRowsMany = 4096;

template <class Array>
Array array_from(nb::handle value, const char* name, const char* expected) {
    Array array;
    if (!nb::try_cast<Array>(value, array, false)) throw nb::type_error((std::string(name) + " must be " + expected).c_str());
    return array;
}

// A number for each query, of at least 1: an integer, or an int64 array of one element or one for each query.
class Numbers {
  public:
    Numbers(nb::handle value, size_t queries, const char* name) {
        if (PyLong_Check(value.ptr())) {
            int overflow = 0;
            one_ = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
            if (overflow) throw std::invalid_argument(std::string(name) + " is out of range");
        } else {
            const auto array = array_from<Labels>(value, name, "an integer or an int64 array");
            const size_t count = array.shape(0);
            if (count != 1 && count != queries) throw std::invalid_argument(std::string(name) + " has neither one element nor one for each query");
            if (count == 1) {
                one_ = array.data()[0];
            } else {
                // Copied: other threads may write to the array when the interpreter lock is released.
                each_.assign(array.data(), array.data() + count);
            }
        }
        checked_positive(one_, name);
        for (int64_t each : each_) checked_positive(each, name);
    }

    size_t operator[](size_t i) const { return static_cast<size_t>(each_.empty() ? one_ : each_[i]); }

  private:
    std::vector<int64_t> each_;
    int64_t one_ = 1;
};

// An array for each query: None or one array for all, or a list that has None or an array for each.
template <class Array>
class Arrays {
  public:
    Arrays(nb::handle value, size_t queries, const char* name, const char* expected) {
        if (value.is_none()) return;
        if (!PyList_Check(value.ptr())) {
            arrays_.push_back(array_from<Array>(value, name, expected));
            return;
        }
        const auto list = nb::borrow<nb::list>(value);
        if (nb::len(list) != queries) throw std::invalid_argument(std::string(name) + " is a list that has not one element for each query");
        arrays_.resize(queries);
        for (size_t i = 0; i < queries; ++i)
            if (const nb::handle element = list[i]; !element.is_none()) arrays_[i] = array_from<Array>(element, name, expected);
        listed_ = true;
    }

    // A null pointer: None.
    const Array* operator[](size_t i) const {
        if (arrays_.empty()) return nullptr;
        const Array& array = arrays_[listed_ ? i : 0];
        return array.is_valid() ? &array : nullptr;
    }

  private:
    std::vector<Array> arrays_;
    bool listed_ = false;
};

// What a search sees, with the arrays that it points into. None: all.
class View {
  public:
    explicit View(nb::handle value) {
        if (value.is_none()) return;
        const char* const expected = "None or (sequence, now, row_count, born, died, expires or None), the last three int64 arrays";
        if (!PyTuple_Check(value.ptr()) || PyTuple_GET_SIZE(value.ptr()) != 6) throw nb::type_error((std::string("view must be ") + expected).c_str());
        const auto tuple = nb::borrow<nb::tuple>(value);
        snapshot_.sequence = nb::cast<int64_t>(tuple[0]);
        snapshot_.now = nb::cast<int64_t>(tuple[1]);
        snapshot_.row_count = nb::cast<int64_t>(tuple[2]);
        snapshot_.born = array(tuple[3], expected);
        snapshot_.died = array(tuple[4], expected);
        if (!tuple[5].is_none()) snapshot_.expires = array(tuple[5], expected);
        given_ = true;
    }
    View(const View&) = delete;

    const Snapshot* snapshot() const { return given_ ? &snapshot_ : nullptr; }

  private:
    const int64_t* array(nb::handle value, const char* expected) {
        arrays_.push_back(array_from<Labels>(value, "view", expected));
        if (static_cast<int64_t>(arrays_.back().shape(0)) < snapshot_.row_count) throw std::invalid_argument("an array of the view is shorter than its row_count");
        return arrays_.back().data();
    }

    bool given_ = false;
    Snapshot snapshot_;
    std::vector<Labels> arrays_;
};

// What all searches take.
class Requests {
  public:
    Requests(const Matrix& queries, size_t dimension, nb::handle k, nb::handle allowed, nb::handle extra, nb::handle coded, nb::handle view,
             double largest_norm, int64_t threads, bool background)
        : count(queries.shape(0)), threads(checked_threads(threads)), purpose(background ? Purpose::kBackground : Purpose::kSearch),
          dimension_(dimension), queries_(queries), k_(k, count, "k"), allowed_(allowed, count, "allowed", "None, a uint8 array or a list of these"),
          extra_(extra, count, "extra", "None, an int64 array or a list of these"), view_(view), largest_norm_(static_cast<float>(largest_norm)) {
        if (queries.shape(1) != dimension)
            throw std::invalid_argument("queries have dimension " + std::to_string(queries.shape(1)) + ", not " + std::to_string(dimension));
        check_finite(queries.data(), queries.size());
        if (!PyTuple_Check(coded.ptr())) throw nb::type_error("coded must be a tuple of Codes");
        for (const nb::handle codes : nb::borrow<nb::tuple>(coded)) {
            if (!nb::isinstance<Codes>(codes)) throw nb::type_error("coded must be a tuple of Codes");
            coded_.push_back(nb::inst_ptr<Codes>(codes));
            coded_rows += coded_.back()->size();
        }
        if (std::isnan(largest_norm) || largest_norm < 0) throw std::invalid_argument("largest_norm must be a number of at least 0");
    }

    const float* query(size_t i) const { return queries_.data() + i * dimension_; }

    Request operator[](size_t i) const {
        // An empty array may have no data; no bits at all would mean that all are allowed.
        static const uint8_t nothing = 0;
        Request request;
        request.k = k_[i];
        if (const Bits* bits = allowed_[i])
            request.allowed = {bits->shape(0) ? bits->data() : &nothing, static_cast<int64_t>(bits->shape(0)) * 8, nullptr};
        request.allowed.snapshot = view_.snapshot();
        if (const Labels* rows = extra_[i]) {
            request.extra = rows->data();
            request.extra_count = rows->shape(0);
        }
        request.coded = coded_.data();
        request.coded_count = coded_.size();
        request.largest_norm = largest_norm_;
        return request;
    }

    const size_t count;
    const unsigned threads;
    const Purpose purpose;
    size_t coded_rows = 0;

  private:
    const size_t dimension_;
    const Matrix& queries_;
    const Numbers k_;
    const Arrays<Bits> allowed_;
    const Arrays<Labels> extra_;
    std::vector<const Codes*> coded_;  // kept by the caller's tuple
    const View view_;
    const float largest_norm_;
};

// Runs `search(i)` for every query, the interpreter lock released.
template <class Search>
nb::tuple run(const Requests& requests, size_t threads, Search search) {
    std::vector<int64_t> rows, ends, compared;
    std::vector<float> scores;
    {
        nb::gil_scoped_release released;
        std::vector<Answer> answers(requests.count);
        parallel(requests.count, threads, requests.purpose, [&](size_t i) { answers[i] = search(i); });
        size_t total = 0;
        for (const Answer& answer : answers) total += answer.hits.size();
        rows.reserve(total);
        scores.reserve(total);
        ends.reserve(requests.count);
        compared.reserve(requests.count);
        for (const Answer& answer : answers) {
            for (const Scored& hit : answer.hits) {
                rows.push_back(hit.row);
                scores.push_back(hit.score);
            }
            ends.push_back(static_cast<int64_t>(rows.size()));
            compared.push_back(static_cast<int64_t>(answer.compared));
        }
    }
    return nb::make_tuple(array_of(std::move(rows)), array_of(std::move(scores)), array_of(std::move(ends)), array_of(std::move(compared)));
}

nb::tuple search(const Graph& graph, Matrix queries, nb::handle k, nb::handle ef, const PyArena& arena, nb::handle rescored, nb::handle allowed,
                 nb::handle extra, nb::handle coded, nb::handle view, nb::handle compared_max, double largest_norm, int64_t threads, bool background) {
    const Requests requests(queries, graph.codec().dimension, k, allowed, extra, coded, view, largest_norm, threads, background);
    const Numbers effort(ef, requests.count, "ef"), kept(rescored, requests.count, "rescored");
    const std::optional<Numbers> most =
        compared_max.is_none() ? std::nullopt : std::optional<Numbers>(std::in_place, compared_max, requests.count, "compared_max");
    // Waking a helper costs about as much as a search of a graph alone.
    const size_t threads_worth = requests.coded_rows < kCodedRowsMany ? (requests.count + 3) / 4 : requests.count;
    return run(requests, std::min<size_t>(requests.threads, threads_worth), [&](size_t i) {
        Request request = requests[i];
        if (most) request.compared_max = (*most)[i];
        return search_graph(graph, arena.arena, requests.query(i), request, effort[i], std::max(request.k, kept[i]));
    });
}

nb::tuple scan_codes(const Graph& graph, Matrix queries, nb::handle k, const PyArena& arena, nb::handle allowed, nb::handle extra, nb::handle coded,
                     nb::handle view, double largest_norm, int64_t threads, bool background) {
    const Requests requests(queries, graph.codec().dimension, k, allowed, extra, coded, view, largest_norm, threads, background);
    return run(requests, requests.threads, [&](size_t i) { return scan_graph(graph, arena.arena, requests.query(i), requests[i]); });
}

nb::tuple scan(const PyArena& arena, Matrix queries, nb::handle k, int64_t row_count, nb::handle allowed, nb::handle extra, nb::handle view,
               double largest_norm, int64_t threads, bool background) {
    const Requests requests(queries, arena.arena.dimension, k, allowed, extra, nb::tuple(), view, largest_norm, threads, background);
    return run(requests, requests.threads, [&](size_t i) { return scan_arena(arena.arena, requests.query(i), requests[i], row_count); });
}

}  // namespace

void bind_searches(nb::module_& m, nb::class_<Graph>& graph) {
    nb::class_<PyArena>(m, "Arena")
        .def(nb::init<int, int64_t, int64_t, const std::string&>(), "metric"_a, "dimension"_a, "chunk_shift"_a, "storage"_a = "float32")
        .def("append", &PyArena::append, "vectors"_a.noconvert(), "terms"_a.noconvert())
        .def("scan", &scan, "queries"_a.noconvert(), "k"_a, "row_count"_a, "allowed"_a = nb::none(), "extra"_a = nb::none(), nb::kw_only(),
             "view"_a = nb::none(), "largest_norm"_a, "threads"_a = 1, "background"_a = false);
    nb::class_<Codes>(m, "Codes")
        .def(
            "__init__",
            [](Codes* self, const PyArena& arena, Labels rows) {
                nb::gil_scoped_release released;
                new (self) Codes(arena.arena, rows.data(), rows.shape(0));
            },
            "arena"_a, "rows"_a.noconvert())
        .def(
            "discard",
            [](Codes& self, Labels rows) {
                nb::gil_scoped_release released;
                return self.discard(rows.data(), rows.shape(0));
            },
            "rows"_a.noconvert())
        .def("__len__", &Codes::size)
        .def_prop_ro("memory_bytes", &Codes::memory_bytes);
    graph
        .def("search", &search, "queries"_a.noconvert(), "k"_a, "ef"_a, "arena"_a, "rescored"_a, "allowed"_a = nb::none(), "extra"_a = nb::none(),
             nb::kw_only(),
             "coded"_a = nb::tuple(), "view"_a = nb::none(), "compared_max"_a = nb::none(), "largest_norm"_a, "threads"_a = 1, "background"_a = false)
        .def("scan", &scan_codes, "queries"_a.noconvert(), "k"_a, "arena"_a, "allowed"_a = nb::none(), "extra"_a = nb::none(), nb::kw_only(),
             "coded"_a = nb::tuple(), "view"_a = nb::none(), "largest_norm"_a, "threads"_a = 1, "background"_a = false);
}

}  // namespace vecmem
