// Distances between codes, one set of functions for every instruction set, chosen at run time.
//
// A code is what a vector becomes in a graph: `padded` bytes of elements (a multiple of 64, so that no function has a tail to
// mind), then a CodeTail. Functions that belong to an instruction set carry a target attribute; nothing is compiled with flags
// of one machine, so a build runs everywhere and takes the best path there is.
//
// int8: stored with an offset of 128, as bytes 1 to 255; 128 is zero and fills the padding. AVX-512 VNNI multiplies unsigned with
// signed bytes: dot(a, b) = sum((a - 128) * b') - 128 * sum(a - 128) where b' = b is the unsigned operand. The sum stands in
// a's tail. All sets compute the same integers; a * b stays below 2^31 for the 16,384 elements that vecmem allows.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vecmem {

enum class CodeType : uint32_t { kInt8 = 1, kFloat16 = 2, kFloat32 = 3, kBinary = 4 };
enum class Metric : uint32_t { kCosine = 1, kDot = 2, kEuclidean = 3 };  // the values of vecmem.index.metric.Metric

struct CodeTail {
    float squared_norm;  // int8 alone: of the code, in code units
    int32_t sum;         // int8 alone: of the elements
};

// What distance functions get beside two codes. Distances order candidates; their scale means nothing.
struct DistanceParams {
    size_t padded;      // bytes of elements
    float norm_weight;  // int8 euclidean: distance = tail(b).squared_norm * norm_weight + tail(a).squared_norm - dot * dot_weight
    float dot_weight;   // 1 for dot and cosine, where distance = -dot * dot_weight
};

// The signature that hnswlib wants.
using DistanceFunction = float (*)(const void* a, const void* b, const void* params);

struct InstructionSet {
    const char* name;
    bool (*is_supported)();
    DistanceFunction int8_dot;
    DistanceFunction int8_euclidean;
    DistanceFunction float16_dot;
    DistanceFunction float16_euclidean;
    DistanceFunction float32_dot;
    DistanceFunction float32_euclidean;
    DistanceFunction hamming;
    // For scans and rescoring, where rows need no padding: the product of a query with a row of float32 or float16, and a row in float32.
    float (*dot)(const float* query, const float* row, size_t count);
    float (*dot_half)(const float* query, const uint16_t* row, size_t count);
    void (*widen)(const uint16_t* row, float* out, size_t count);
};

extern const InstructionSet kPlain;
#if defined(__x86_64__)
extern const InstructionSet kAvx2;
extern const InstructionSet kAvx512Vnni;
#elif defined(__aarch64__)
extern const InstructionSet kNeon;
#endif

// The sets of this build, best first; a null pointer ends the list.
extern const InstructionSet* const kInstructionSets[];

// The set that graphs and arenas made from now on use: the best that this machine has, unless one was forced.
const InstructionSet& instruction_set();

// Forces a set by name, for tests. False: no such set here, or the machine lacks it.
bool use_instruction_set(const char* name);

// The function that compares codes. Cosine compares unit vectors by their dot product; binary codes compare by hamming whatever the metric.
DistanceFunction distance_function(const InstructionSet& set, CodeType code, Metric metric);

inline const CodeTail& tail_of(const void* code, size_t padded) {
    return *reinterpret_cast<const CodeTail*>(static_cast<const char*>(code) + padded);
}

float half_to_float(uint16_t half);
uint16_t float_to_half(float value);  // rounds to nearest even; beyond the range: the largest finite

}  // namespace vecmem

// The distance functions of one instruction set out of its primitives dot_int8, dot_float32, ... `ATTRIBUTE` is its target attribute.
#define VECMEM_DISTANCE_FUNCTIONS(ATTRIBUTE)                                                               \
    ATTRIBUTE float int8_dot(const void* a, const void* b, const void* params) {                           \
        const auto& p = *static_cast<const DistanceParams*>(params);                                       \
        return -static_cast<float>(dot_int8(a, b, p.padded)) * p.dot_weight;                               \
    }                                                                                                      \
    ATTRIBUTE float int8_euclidean(const void* a, const void* b, const void* params) {                     \
        const auto& p = *static_cast<const DistanceParams*>(params);                                       \
        return tail_of(b, p.padded).squared_norm * p.norm_weight + tail_of(a, p.padded).squared_norm -     \
               static_cast<float>(dot_int8(a, b, p.padded)) * p.dot_weight;                                \
    }                                                                                                      \
    ATTRIBUTE float float16_dot(const void* a, const void* b, const void* params) {                        \
        return -dot_float16(a, b, static_cast<const DistanceParams*>(params)->padded / 2);                 \
    }                                                                                                      \
    ATTRIBUTE float float16_euclidean(const void* a, const void* b, const void* params) {                  \
        return square_float16(a, b, static_cast<const DistanceParams*>(params)->padded / 2);               \
    }                                                                                                      \
    ATTRIBUTE float float32_dot(const void* a, const void* b, const void* params) {                        \
        return -dot_float32(static_cast<const float*>(a), static_cast<const float*>(b),                    \
                            static_cast<const DistanceParams*>(params)->padded / 4);                       \
    }                                                                                                      \
    ATTRIBUTE float float32_euclidean(const void* a, const void* b, const void* params) {                  \
        return square_float32(static_cast<const float*>(a), static_cast<const float*>(b),                  \
                              static_cast<const DistanceParams*>(params)->padded / 4);                     \
    }                                                                                                      \
    ATTRIBUTE float hamming(const void* a, const void* b, const void* params) {                            \
        return static_cast<float>(differing_bits(a, b, static_cast<const DistanceParams*>(params)->padded)); \
    }
