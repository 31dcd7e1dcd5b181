#include "codes.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace vecmem {

namespace {

// Vectors widened together.
constexpr size_t kBlock = 128;
// Scales whose squares are numbers of float32; beyond them rounding is coarser, and its bound says so.
constexpr double kScaleMin = 1e-15, kScaleMax = 1e15;

// By bits, whose order is that of numbers without sign: compilers make vector instructions of that.
float largest_element(const float* vector, size_t dimension) {
    int32_t largest = 0;
    for (size_t i = 0; i < dimension; ++i) {
        int32_t bits;
        std::memcpy(&bits, vector + i, sizeof bits);
        bits &= 0x7fffffff;
        largest = largest > bits ? largest : bits;
    }
    float element;
    std::memcpy(&element, &largest, sizeof element);
    return element;
}

template <class F>
void for_each_block(const Arena& arena, const std::vector<int64_t>& rows, F f) {
    std::vector<float> vectors(std::min(kBlock, rows.size()) * arena.dimension);
    for (size_t start = 0; start < rows.size(); start += kBlock) {
        const size_t count = std::min(kBlock, rows.size() - start);
        arena.gather(&rows[start], count, vectors.data());
        for (size_t i = 0; i < count; ++i) f(start + i, &vectors[i * arena.dimension]);
    }
}

}  // namespace

Codes::Codes(const Arena& arena, const int64_t* rows, size_t count)
    : rows_(rows, rows + count), distance_(distance_function(instruction_set(), CodeType::kInt8, arena.metric)),
      discarded_(new std::atomic<bool>[count]) {
    for (size_t i = 0; i < count; ++i) {
        if (i && rows_[i] <= rows_[i - 1]) throw std::invalid_argument("rows do not rise");
        discarded_[i].store(false, std::memory_order_relaxed);
    }
    double largest = 0;
    for_each_block(arena, rows_, [&](size_t, const float* vector) {
        double element = largest_element(vector, arena.dimension);
        if (arena.metric == Metric::kCosine && element > 0) element /= exact_length(vector, arena.dimension);
        largest = std::max(largest, element);
    });
    const double scale = largest > 0 ? std::min(kScaleMax, std::max(kScaleMin, largest / 127)) : 1.0;
    codec_ = std::make_unique<const Codec>(CodeType::kInt8, arena.metric, arena.dimension, static_cast<float>(scale));
    stride_ = codec_->code_bytes();
    codes_.reset(new char[count * stride_]);
    for_each_block(arena, rows_, [&](size_t i, const float* vector) {
        residual_max_ = std::max(residual_max_, codec_->encode(vector, &codes_[i * stride_], nullptr));
    });
}

size_t Codes::discard(const int64_t* rows, size_t count) {
    size_t discarded = 0;
    for (size_t i = 0; i < count; ++i) {
        const auto found = std::lower_bound(rows_.begin(), rows_.end(), rows[i]);
        if (found == rows_.end() || *found != rows[i]) continue;
        discarded += !discarded_[static_cast<size_t>(found - rows_.begin())].exchange(true, std::memory_order_release);
    }
    return discarded;
}

}  // namespace vecmem
