// NEON versions of the distances: part of every 64-bit ARM, so there is nothing to detect.
#if defined(__aarch64__)

#include <arm_neon.h>

#include "distance.h"

namespace vecmem {

namespace {

const uint8_t* bytes(const void* p) { return static_cast<const uint8_t*>(p); }

inline int32_t dot_int8(const void* a, const void* b, size_t padded) {
    const uint8x16_t offset = vdupq_n_u8(0x80);
    int32x4_t sum = vdupq_n_s32(0);
    for (size_t i = 0; i < padded; i += 16) {
        const int8x16_t x = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(bytes(a) + i), offset));
        const int8x16_t y = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(bytes(b) + i), offset));
        sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(x), vget_low_s8(y)));
        sum = vpadalq_s16(sum, vmull_high_s8(x, y));
    }
    return vaddvq_s32(sum);
}

inline float dot_float32(const float* a, const float* b, size_t count) {
    float32x4_t s0 = vdupq_n_f32(0), s1 = s0;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        s0 = vfmaq_f32(s0, vld1q_f32(a + i), vld1q_f32(b + i));
        s1 = vfmaq_f32(s1, vld1q_f32(a + i + 4), vld1q_f32(b + i + 4));
    }
    float sum = vaddvq_f32(vaddq_f32(s0, s1));
    for (; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

inline float square_float32(const float* a, const float* b, size_t count) {
    float32x4_t s0 = vdupq_n_f32(0), s1 = s0;
    for (size_t i = 0; i < count; i += 8) {
        const float32x4_t d0 = vsubq_f32(vld1q_f32(a + i), vld1q_f32(b + i));
        const float32x4_t d1 = vsubq_f32(vld1q_f32(a + i + 4), vld1q_f32(b + i + 4));
        s0 = vfmaq_f32(s0, d0, d0);
        s1 = vfmaq_f32(s1, d1, d1);
    }
    return vaddvq_f32(vaddq_f32(s0, s1));
}

inline float32x4_t halves(const void* p, size_t i) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(bytes(p) + 2 * i)));
}

inline float dot_float16(const void* a, const void* b, size_t count) {
    float32x4_t s0 = vdupq_n_f32(0), s1 = s0;
    for (size_t i = 0; i < count; i += 8) {
        s0 = vfmaq_f32(s0, halves(a, i), halves(b, i));
        s1 = vfmaq_f32(s1, halves(a, i + 4), halves(b, i + 4));
    }
    return vaddvq_f32(vaddq_f32(s0, s1));
}

inline float square_float16(const void* a, const void* b, size_t count) {
    float32x4_t s0 = vdupq_n_f32(0), s1 = s0;
    for (size_t i = 0; i < count; i += 8) {
        const float32x4_t d0 = vsubq_f32(halves(a, i), halves(b, i)), d1 = vsubq_f32(halves(a, i + 4), halves(b, i + 4));
        s0 = vfmaq_f32(s0, d0, d0);
        s1 = vfmaq_f32(s1, d1, d1);
    }
    return vaddvq_f32(vaddq_f32(s0, s1));
}

float dot_half(const float* query, const uint16_t* row, size_t count) {
    float32x4_t s0 = vdupq_n_f32(0), s1 = s0;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        s0 = vfmaq_f32(s0, vld1q_f32(query + i), halves(row, i));
        s1 = vfmaq_f32(s1, vld1q_f32(query + i + 4), halves(row, i + 4));
    }
    float sum = vaddvq_f32(vaddq_f32(s0, s1));
    for (; i < count; ++i) sum += query[i] * half_to_float(row[i]);
    return sum;
}

void widen(const uint16_t* row, float* out, size_t count) {
    size_t i = 0;
    for (; i + 4 <= count; i += 4) vst1q_f32(out + i, halves(row, i));
    for (; i < count; ++i) out[i] = half_to_float(row[i]);
}

inline uint32_t differing_bits(const void* a, const void* b, size_t padded) {
    uint32_t count = 0;
    for (size_t i = 0; i < padded; i += 16) count += vaddvq_u8(vcntq_u8(veorq_u8(vld1q_u8(bytes(a) + i), vld1q_u8(bytes(b) + i))));
    return count;
}

VECMEM_DISTANCE_FUNCTIONS()

bool always() { return true; }

}  // namespace

const InstructionSet kNeon = {"neon",            always,      int8_dot,          int8_euclidean, float16_dot,
                              float16_euclidean, float32_dot, float32_euclidean, hamming,        dot_float32,
                              dot_half,          widen};

}  // namespace vecmem

#endif
