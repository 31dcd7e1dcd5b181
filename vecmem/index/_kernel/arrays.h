// What module.cpp and module_search.cpp share: the arrays that calls take and return, and checks of values.
//
// ValueError: a value or shape that cannot be. TypeError: another dtype, order or type. RuntimeError: a file. Arrays are taken as they are,
// never converted: a copy nobody asked for costs more than the call.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "graph.h"
#include "arena.h"

namespace vecmem {

namespace nb = nanobind;

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Labels = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bits = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Rows of float32, or of float16 as float16 or uint16.
using Rows = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr unsigned kThreadsMax = 256;

template <class T>
nb::object array_of(std::vector<T>&& values) {
    auto* owned = new std::vector<T>(std::move(values));
    nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return nb::ndarray<nb::numpy, T, nb::ndim<1>>(owned->data(), {owned->size()}, owner).cast();
}

inline Metric metric_numbered(int value) {
    if (value < 1 || value > 3) throw std::invalid_argument("no metric has number " + std::to_string(value));
    return static_cast<Metric>(value);
}

inline void check_finite(const float* values, size_t count) {
    // NaN and infinity alone make x - x something else than 0.
    float sum = 0;
    for (size_t i = 0; i < count; ++i) sum += values[i] - values[i];
    if (sum != 0) throw std::invalid_argument("a vector has an element that is not finite");
}

inline unsigned checked_threads(int64_t threads) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1");
    return static_cast<unsigned>(std::min<int64_t>(threads, kThreadsMax));
}

inline size_t checked_positive(int64_t value, const char* name) {
    if (value < 1) throw std::invalid_argument(std::string(name) + " must be at least 1");
    return static_cast<size_t>(value);
}

inline Storage storage_named(const std::string& name) {
    if (name == "float32") return Storage::kFloat32;
    if (name == "float16") return Storage::kFloat16;
    throw std::invalid_argument("no storage is called " + name);
}

inline bool holds(const Rows& rows, Storage storage) {
    const nb::dlpack::dtype type = rows.dtype();
    if (storage == Storage::kFloat32) return type == nb::dtype<float>();
    return type == nb::dtype<uint16_t>() || (type.bits == 16 && type.lanes == 1 && type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float));
}

// An arena with the arrays that it points into.
struct PyArena {
    PyArena(int metric, int64_t dimension, int64_t chunk_shift, const std::string& storage)
        : arena(metric_numbered(metric), checked_positive(dimension, "dimension"),
                chunk_shift < 0 || chunk_shift > 40 ? throw std::invalid_argument("chunk_shift must be between 0 and 40")
                                                    : static_cast<unsigned>(chunk_shift),
                storage_named(storage)),
          chunk_rows(size_t{1} << chunk_shift) {}

    void append(Rows vectors, Vector terms) {
        if (!holds(vectors, arena.storage)) throw nb::type_error("vectors must be float32, or float16 or uint16 in an arena of float16");
        if (vectors.shape(0) != chunk_rows || vectors.shape(1) != arena.dimension || terms.shape(0) != chunk_rows)
            throw std::invalid_argument("a chunk needs its number of rows, the arena's dimension, and a term for each row");
        arrays.emplace_back(vectors, terms);
        arena.append(vectors.data(), terms.data());
    }

    Arena arena;
    const size_t chunk_rows;
    std::vector<std::pair<Rows, Vector>> arrays;
};

// Adds the searches and PyArena to the module (module_search.cpp).
void bind_searches(nb::module_& m, nb::class_<Graph>& graph);

}  // namespace vecmem
