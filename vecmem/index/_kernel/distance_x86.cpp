// AVX2 (with FMA and F16C) and AVX-512 (with VNNI) versions of the distances.
#if defined(__x86_64__)

#include <immintrin.h>

#include "distance.h"

#define AVX2 __attribute__((target("avx2,fma,f16c,popcnt")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")))

namespace vecmem {

namespace avx2 {
namespace {

AVX2 inline float sum_of(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

AVX2 inline int32_t dot_int8(const void* a, const void* b, size_t padded) {
    const __m256i offset = _mm256_set1_epi8(static_cast<char>(0x80)), ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < padded; i += 32) {
        // |a| * (b with a's sign): pairs stay below 2^15, since no element is -128.
        __m256i x = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const char*>(a) + i)), offset);
        __m256i y = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const char*>(b) + i)), offset);
        __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(y, x));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    return _mm_cvtsi128_si32(half);
}

AVX2 inline float dot_float32(const float* a, const float* b, size_t count) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
        s1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), s1);
        s2 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 16), _mm256_loadu_ps(b + i + 16), s2);
        s3 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 24), _mm256_loadu_ps(b + i + 24), s3);
    }
    for (; i + 8 <= count; i += 8) s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
    float sum = sum_of(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
    for (; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

AVX2 inline float square_float32(const float* a, const float* b, size_t count) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0;
    for (size_t i = 0; i < count; i += 16) {
        __m256 d0 = _mm256_sub_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i));
        __m256 d1 = _mm256_sub_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8));
        s0 = _mm256_fmadd_ps(d0, d0, s0);
        s1 = _mm256_fmadd_ps(d1, d1, s1);
    }
    return sum_of(_mm256_add_ps(s0, s1));
}

AVX2 inline __m256 halves(const void* p, size_t i) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const char*>(p) + 2 * i)));
}

AVX2 inline float dot_float16(const void* a, const void* b, size_t count) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0;
    for (size_t i = 0; i < count; i += 16) {
        s0 = _mm256_fmadd_ps(halves(a, i), halves(b, i), s0);
        s1 = _mm256_fmadd_ps(halves(a, i + 8), halves(b, i + 8), s1);
    }
    return sum_of(_mm256_add_ps(s0, s1));
}

AVX2 inline float square_float16(const void* a, const void* b, size_t count) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0;
    for (size_t i = 0; i < count; i += 16) {
        __m256 d0 = _mm256_sub_ps(halves(a, i), halves(b, i)), d1 = _mm256_sub_ps(halves(a, i + 8), halves(b, i + 8));
        s0 = _mm256_fmadd_ps(d0, d0, s0);
        s1 = _mm256_fmadd_ps(d1, d1, s1);
    }
    return sum_of(_mm256_add_ps(s0, s1));
}

AVX2 float dot_half(const float* query, const uint16_t* row, size_t count) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0;
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(query + i), halves(row, i), s0);
        s1 = _mm256_fmadd_ps(_mm256_loadu_ps(query + i + 8), halves(row, i + 8), s1);
    }
    float sum = sum_of(_mm256_add_ps(s0, s1));
    for (; i < count; ++i) sum += query[i] * _cvtsh_ss(row[i]);
    return sum;
}

AVX2 void widen(const uint16_t* row, float* out, size_t count) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, halves(row, i));
    for (; i < count; ++i) out[i] = _cvtsh_ss(row[i]);
}

AVX2 inline uint32_t differing_bits(const void* a, const void* b, size_t padded) {
    uint64_t count = 0;
    const auto *x = static_cast<const long long*>(a), *y = static_cast<const long long*>(b);
    for (size_t i = 0; i < padded / 8; ++i) count += static_cast<uint64_t>(_mm_popcnt_u64(static_cast<uint64_t>(x[i] ^ y[i])));
    return static_cast<uint32_t>(count);
}

VECMEM_DISTANCE_FUNCTIONS(AVX2)

AVX2 float dot(const float* a, const float* b, size_t count) { return dot_float32(a, b, count); }

bool is_supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("popcnt");
}

}  // namespace
}  // namespace avx2

namespace avx512 {
namespace {

AVX512 inline int32_t dot_int8(const void* a, const void* b, size_t padded) {
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));
    const auto *x = static_cast<const char*>(a), *y = static_cast<const char*>(b);
    __m512i s0 = _mm512_setzero_si512(), s1 = s0;
    size_t i = 0;
    for (; i + 128 <= padded; i += 128) {
        s0 = _mm512_dpbusd_epi32(s0, _mm512_loadu_si512(y + i), _mm512_xor_si512(_mm512_loadu_si512(x + i), offset));
        s1 = _mm512_dpbusd_epi32(s1, _mm512_loadu_si512(y + i + 64), _mm512_xor_si512(_mm512_loadu_si512(x + i + 64), offset));
    }
    if (i < padded) s0 = _mm512_dpbusd_epi32(s0, _mm512_loadu_si512(y + i), _mm512_xor_si512(_mm512_loadu_si512(x + i), offset));
    // Two's complement: what may overflow above 2^31 on the way comes back by the subtraction.
    return static_cast<int32_t>(static_cast<uint32_t>(_mm512_reduce_add_epi32(_mm512_add_epi32(s0, s1))) -
                                128u * static_cast<uint32_t>(tail_of(a, padded).sum));
}

AVX512 inline float dot_float32(const float* a, const float* b, size_t count) {
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 64 <= count; i += 64) {
        s0 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), s0);
        s1 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16), _mm512_loadu_ps(b + i + 16), s1);
        s2 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 32), _mm512_loadu_ps(b + i + 32), s2);
        s3 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 48), _mm512_loadu_ps(b + i + 48), s3);
    }
    for (; i < count; i += 16) {
        const __mmask16 mask = count - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count - i)) - 1);
        s0 = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + i), _mm512_maskz_loadu_ps(mask, b + i), s0);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)));
}

AVX512 inline float square_float32(const float* a, const float* b, size_t count) {
    __m512 s = _mm512_setzero_ps();
    for (size_t i = 0; i < count; i += 16) {
        __m512 d = _mm512_sub_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i));
        s = _mm512_fmadd_ps(d, d, s);
    }
    return _mm512_reduce_add_ps(s);
}

AVX512 inline __m512 halves(const void* p, size_t i) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const char*>(p) + 2 * i)));
}

AVX512 inline float dot_float16(const void* a, const void* b, size_t count) {
    __m512 s0 = _mm512_setzero_ps(), s1 = s0;
    for (size_t i = 0; i < count; i += 32) {
        s0 = _mm512_fmadd_ps(halves(a, i), halves(b, i), s0);
        s1 = _mm512_fmadd_ps(halves(a, i + 16), halves(b, i + 16), s1);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(s0, s1));
}

AVX512 inline float square_float16(const void* a, const void* b, size_t count) {
    __m512 s0 = _mm512_setzero_ps(), s1 = s0;
    for (size_t i = 0; i < count; i += 32) {
        __m512 d0 = _mm512_sub_ps(halves(a, i), halves(b, i)), d1 = _mm512_sub_ps(halves(a, i + 16), halves(b, i + 16));
        s0 = _mm512_fmadd_ps(d0, d0, s0);
        s1 = _mm512_fmadd_ps(d1, d1, s1);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(s0, s1));
}

AVX512 inline __mmask16 first(size_t count) { return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1); }

AVX512 inline __m512 halves(__mmask16 mask, const uint16_t* p) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p)); }

AVX512 float dot_half(const float* query, const uint16_t* row, size_t count) {
    __m512 s0 = _mm512_setzero_ps(), s1 = s0;
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        s0 = _mm512_fmadd_ps(_mm512_loadu_ps(query + i), halves(row, i), s0);
        s1 = _mm512_fmadd_ps(_mm512_loadu_ps(query + i + 16), halves(row, i + 16), s1);
    }
    for (; i < count; i += 16) {
        const __mmask16 mask = first(count - i);
        s0 = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, query + i), halves(mask, row + i), s0);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(s0, s1));
}

AVX512 void widen(const uint16_t* row, float* out, size_t count) {
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first(count - i);
        _mm512_mask_storeu_ps(out + i, mask, halves(mask, row + i));
    }
}

AVX512 inline uint32_t differing_bits(const void* a, const void* b, size_t padded) {
    __m512i sum = _mm512_setzero_si512();
    for (size_t i = 0; i < padded; i += 64) {
        __m512i x = _mm512_loadu_si512(static_cast<const char*>(a) + i), y = _mm512_loadu_si512(static_cast<const char*>(b) + i);
        sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(x, y)));
    }
    return static_cast<uint32_t>(_mm512_reduce_add_epi64(sum));
}

VECMEM_DISTANCE_FUNCTIONS(AVX512)

AVX512 float dot(const float* a, const float* b, size_t count) { return dot_float32(a, b, count); }

bool is_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vpopcntdq");
}

}  // namespace
}  // namespace avx512

#define VECMEM_INSTRUCTION_SET(NAME, SPACE)                                                                                  \
    {NAME, SPACE::is_supported, SPACE::int8_dot, SPACE::int8_euclidean, SPACE::float16_dot, SPACE::float16_euclidean,        \
     SPACE::float32_dot, SPACE::float32_euclidean, SPACE::hamming, SPACE::dot,                                                    \
     SPACE::dot_half, SPACE::widen}

const InstructionSet kAvx2 = VECMEM_INSTRUCTION_SET("avx2", avx2);
const InstructionSet kAvx512Vnni = VECMEM_INSTRUCTION_SET("avx512_vnni", avx512);

}  // namespace vecmem

#endif
