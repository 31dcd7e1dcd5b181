#include "codec.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace vecmem {

namespace {

size_t element_bytes(CodeType code, size_t dimension) {
    switch (code) {
        case CodeType::kInt8: return dimension;
        case CodeType::kFloat16: return 2 * dimension;
        case CodeType::kFloat32: return 4 * dimension;
        case CodeType::kBinary: return (dimension + 7) / 8;
    }
    throw std::invalid_argument("unknown code type");
}

// Zeros of either sign are one code.
uint16_t positive_zero(uint16_t half) { return half == 0x8000u ? 0 : half; }

}  // namespace

Codec::Codec(CodeType code_type, Metric metric, size_t dim, float code_scale)
    : code(code_type), metric_(metric), dimension(dim), scale(code_scale),
      padded_((element_bytes(code_type, dim) + 63) / 64 * 64) {
    if (!std::isfinite(scale) || scale <= 0) throw std::invalid_argument("scale must be a positive number");
}

double Codec::inverse_length(const float* vector) const {
    if (metric_ != Metric::kCosine) return 1.0;
    double lanes[8] = {};
    size_t i = 0;
    for (; i + 8 <= dimension; i += 8)
        for (size_t j = 0; j < 8; ++j) lanes[j] += double{vector[i + j]} * vector[i + j];
    double squares = 0;
    for (; i < dimension; ++i) squares += double{vector[i]} * vector[i];
    for (double lane : lanes) squares += lane;
    return squares > 0 ? 1.0 / std::sqrt(squares) : 0.0;
}

float Codec::encode_int8(const float* vector, char* out, float by, double length, bool* clipped) const {
    const auto factor = static_cast<float>(length / by);
    auto* bytes = reinterpret_cast<uint8_t*>(out);
    int32_t sum = 0;
    uint32_t squares = 0;
    float cut = 0, largest = 0;
    for (size_t i = 0; i < dimension; ++i) {
        const float wanted = vector[i] * factor;
        const float bounded = std::min(127.0f, std::max(-127.0f, wanted));
        // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
        const float rounded = (bounded + 12582912.0f) - 12582912.0f;
        const auto element = static_cast<int32_t>(rounded);
        bytes[i] = static_cast<uint8_t>(element + 128);
        sum += element;
        squares += static_cast<uint32_t>(element * element);
        cut += (wanted - rounded) * (wanted - rounded);
        largest = std::max(largest, std::fabs(wanted));
    }
    std::memset(bytes + dimension, 128, padded_ - dimension);
    const CodeTail tail = {static_cast<float>(squares), sum};
    std::memcpy(out + padded_, &tail, sizeof tail);
    if (clipped) *clipped = largest > 127.5f;
    // A little more than computed, for the float32 sums.
    return std::sqrt(cut) * by * 1.0001f;
}

void Codec::encode_other(const float* vector, char* out, double length) const {
    std::memset(out, 0, code_bytes());
    switch (code) {
        case CodeType::kFloat16:
            for (size_t i = 0; i < dimension; ++i) {
                const uint16_t half = positive_zero(float_to_half(static_cast<float>(vector[i] * length / scale)));
                std::memcpy(out + 2 * i, &half, 2);
            }
            return;
        case CodeType::kFloat32:
            for (size_t i = 0; i < dimension; ++i) {
                // + 0.0f, so that zeros of either sign are one code.
                const float element = static_cast<float>(vector[i] * length) + 0.0f;
                std::memcpy(out + 4 * i, &element, 4);
            }
            return;
        case CodeType::kBinary:
            for (size_t i = 0; i < dimension; ++i)
                if (vector[i] > 0) out[i / 8] = static_cast<char>(out[i / 8] | 1 << (i % 8));
            return;
        case CodeType::kInt8: return;
    }
}

float Codec::encode(const float* vector, char* out, bool* clipped) const {
    if (code == CodeType::kInt8) return encode_int8(vector, out, scale, inverse_length(vector), clipped);
    encode_other(vector, out, inverse_length(vector));
    if (clipped) *clipped = false;
    return 0;
}

void Codec::encode_query(const float* query, char* out, DistanceParams* p, float* query_scale, float* residual) const {
    *p = params();
    *query_scale = scale;
    *residual = 0;
    if (code != CodeType::kInt8) return encode_other(query, out, inverse_length(query));
    float largest = 0;
    for (size_t i = 0; i < dimension; ++i) largest = std::max(largest, std::fabs(query[i]));
    const double length = inverse_length(query);
    const auto own = static_cast<float>(largest * length / 127.0);
    *query_scale = own > 1e-30f ? own : 1e-30f;
    *residual = encode_int8(query, out, *query_scale, length, nullptr);
    if (metric_ == Metric::kEuclidean) {
        // |x|^2 - 2 x.q in squared units of the codes' scale; |q|^2 is the same for all and left out.
        p->dot_weight = 2.0f * *query_scale / scale;
        CodeTail tail = tail_of(out, padded_);
        tail.squared_norm = 0;
        std::memcpy(out + padded_, &tail, sizeof tail);
    }
}

}  // namespace vecmem
