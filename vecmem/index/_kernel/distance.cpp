#include "distance.h"

#include <atomic>
#include <cstring>

namespace vecmem {

namespace {

const uint8_t* bytes(const void* p) { return static_cast<const uint8_t*>(p); }

int32_t dot_int8(const void* a, const void* b, size_t padded) {
    int32_t sum = 0;
    for (size_t i = 0; i < padded; ++i) sum += (int32_t{bytes(a)[i]} - 128) * (int32_t{bytes(b)[i]} - 128);
    return sum;
}

float dot_float32(const float* a, const float* b, size_t count) {
    float lanes[8] = {};
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (size_t j = 0; j < 8; ++j) lanes[j] += a[i + j] * b[i + j];
    float sum = 0;
    for (; i < count; ++i) sum += a[i] * b[i];
    for (float lane : lanes) sum += lane;
    return sum;
}

float dot_half(const float* query, const uint16_t* row, size_t count) {
    float lanes[8] = {};
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (size_t j = 0; j < 8; ++j) lanes[j] += query[i + j] * half_to_float(row[i + j]);
    float sum = 0;
    for (; i < count; ++i) sum += query[i] * half_to_float(row[i]);
    for (float lane : lanes) sum += lane;
    return sum;
}

void widen(const uint16_t* row, float* out, size_t count) {
    for (size_t i = 0; i < count; ++i) out[i] = half_to_float(row[i]);
}

float square_float32(const float* a, const float* b, size_t count) {
    float lanes[8] = {};
    for (size_t i = 0; i < count; i += 8)
        for (size_t j = 0; j < 8; ++j) lanes[j] += (a[i + j] - b[i + j]) * (a[i + j] - b[i + j]);
    float sum = 0;
    for (float lane : lanes) sum += lane;
    return sum;
}

float half_at(const void* p, size_t i) {
    uint16_t half;
    std::memcpy(&half, bytes(p) + 2 * i, 2);
    return half_to_float(half);
}

float dot_float16(const void* a, const void* b, size_t count) {
    float sum = 0;
    for (size_t i = 0; i < count; ++i) sum += half_at(a, i) * half_at(b, i);
    return sum;
}

float square_float16(const void* a, const void* b, size_t count) {
    float sum = 0;
    for (size_t i = 0; i < count; ++i) {
        float difference = half_at(a, i) - half_at(b, i);
        sum += difference * difference;
    }
    return sum;
}

uint32_t differing_bits(const void* a, const void* b, size_t padded) {
    uint32_t count = 0;
    for (size_t i = 0; i < padded; i += 8) {
        uint64_t x, y;
        std::memcpy(&x, bytes(a) + i, 8);
        std::memcpy(&y, bytes(b) + i, 8);
        count += static_cast<uint32_t>(__builtin_popcountll(x ^ y));
    }
    return count;
}

VECMEM_DISTANCE_FUNCTIONS()

bool always() { return true; }

std::atomic<const InstructionSet*> forced{nullptr};

}  // namespace

const InstructionSet kPlain = {"plain",           always,      int8_dot,          int8_euclidean, float16_dot,
                               float16_euclidean, float32_dot, float32_euclidean, hamming,        dot_float32,
                               dot_half,          widen};

const InstructionSet* const kInstructionSets[] = {
#if defined(__x86_64__)
    &kAvx512Vnni, &kAvx2,
#elif defined(__aarch64__)
    &kNeon,
#endif
    &kPlain, nullptr};

const InstructionSet& instruction_set() {
    if (const InstructionSet* set = forced.load()) return *set;
    for (auto set = kInstructionSets; *set; ++set)
        if ((*set)->is_supported()) return **set;
    return kPlain;
}

bool use_instruction_set(const char* name) {
    if (!*name) {
        forced = nullptr;
        return true;
    }
    for (auto set = kInstructionSets; *set; ++set) {
        if (std::strcmp((*set)->name, name) == 0 && (*set)->is_supported()) {
            forced = *set;
            return true;
        }
    }
    return false;
}

DistanceFunction distance_function(const InstructionSet& set, CodeType code, Metric metric) {
    const bool euclidean = metric == Metric::kEuclidean;
    switch (code) {
        case CodeType::kInt8: return euclidean ? set.int8_euclidean : set.int8_dot;
        case CodeType::kFloat16: return euclidean ? set.float16_euclidean : set.float16_dot;
        case CodeType::kFloat32: return euclidean ? set.float32_euclidean : set.float32_dot;
        case CodeType::kBinary: return set.hamming;
    }
    return nullptr;
}

float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t{half & 0x8000u} << 16;
    uint32_t exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff, bits;
    if (exponent == 0x1f) {
        bits = sign | 0x7f800000u | (mantissa << 13);
    } else if (exponent) {
        bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
    } else {
        // Subnormal: mantissa * 2^-24, which float32 holds exactly.
        float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

uint16_t float_to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x477ff000u) return sign | 0x7bffu;  // 65520 and above would round to infinity
    if (magnitude < 0x38800000u) {
        // Subnormal or zero: adding 0.5 aligns the mantissa to units of 2^-24 and rounds to nearest even.
        float absolute;
        std::memcpy(&absolute, &magnitude, 4);
        absolute += 0.5f;
        uint32_t shifted;
        std::memcpy(&shifted, &absolute, 4);
        return sign | static_cast<uint16_t>(shifted - 0x3f000000u);
    }
    const uint32_t odd = (magnitude >> 13) & 1;
    return sign | static_cast<uint16_t>((magnitude - 0x38000000u + 0xfffu + odd) >> 13);
}

}  // namespace vecmem
