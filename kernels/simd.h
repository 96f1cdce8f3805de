/* A vector of floats as wide as the instruction set that the including file is compiled for. Included only by the
 * simd_*.c files, each of which is compiled once per instruction set (kernels/meson.build) and reached through the
 * table of simd_kernels.h. Portable parts are GCC's vector extension; x86 intrinsics stand where it has no word for the
 * instruction. */
#ifndef SPT_SIMD_H
#define SPT_SIMD_H

#include "core/backend.h"
#include "vector_math.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define SPT_LANES 16
#define SPT_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__)
#define SPT_LANES 8
#define SPT_AVX2 1
#else
#define SPT_LANES 4
#endif
#if defined(SPT_AVX512) && defined(__AVX512BF16__)
#define SPT_AVX512_BF16 1
#endif

typedef float vf __attribute__((vector_size(4 * SPT_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * SPT_LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * SPT_LANES)));

SPT_INLINE vf vf_set(float x) {
  return x - (vf){0};
}
SPT_INLINE vf vf_zero(void) {
  return (vf){0};
}
SPT_INLINE vf vf_load(const float *p) {
  vf x;
  memcpy(&x, p, sizeof x);
  return x;
}
SPT_INLINE void vf_store(float *p, vf x) {
  memcpy(p, &x, sizeof x);
}
/* The first n < SPT_LANES elements; zeros beyond. */
SPT_INLINE vf vf_load_part(const float *p, int64_t n) {
#ifdef SPT_AVX512
  return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
#else
  vf x = {0};
  for (int64_t i = 0; i < n; i++) x[i] = p[i];
  return x;
#endif
}
SPT_INLINE void vf_store_part(float *p, vf x, int64_t n) {
#ifdef SPT_AVX512
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)x);
#else
  for (int64_t i = 0; i < n; i++) p[i] = x[i];
#endif
}

/* a·b + c in one rounding where the processor has it */
SPT_INLINE vf vf_fma(vf a, vf b, vf c) {
#if defined(SPT_AVX512)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(SPT_AVX2)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
/* b where either is a NaN */
SPT_INLINE vf vf_max(vf a, vf b) {
#if defined(SPT_AVX512)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(SPT_AVX2)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  const vi larger = a > b; // false where either is a NaN: then b
  return (vf)((larger & (vi)a) | (~larger & (vi)b));
#endif
}
/* Bits of a where the mask is set, else zero. */
SPT_INLINE vf vf_where(vi mask, vf a) {
  return (vf)((vi)a & mask);
}
SPT_INLINE float vf_sum(vf x) {
  float sum = 0.0f;
#if defined(SPT_AVX512)
  sum = _mm512_reduce_add_ps((__m512)x);
#else
  for (int i = 0; i < SPT_LANES; i++) sum += x[i];
#endif
  return sum;
}
SPT_INLINE float vf_largest(vf x) {
#if defined(SPT_AVX512)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float largest = x[0];
  for (int i = 1; i < SPT_LANES; i++) largest = x[i] > largest ? x[i] : largest;
  return largest;
#endif
}

/* bf16 in memory, fp32 in registers; rounds to nearest even. A NaN stays one. */
SPT_INLINE vf vf_load_bf16(const uint16_t *p) {
#if defined(SPT_AVX512)
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p)), 16);
#elif defined(SPT_AVX2)
  return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)), 16);
#else
  vu x;
  for (int i = 0; i < SPT_LANES; i++) x[i] = (uint32_t)p[i] << 16;
  return (vf)x;
#endif
}
SPT_INLINE vu vf_bf16_bits(vf x) { // in the low half of each lane
  const vu bits = (vu)x;
  const vu rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const vu quiet = (bits >> 16) | 0x40u;
  const vu nan = (vu)((bits & 0x7FFFFFFFu) > 0x7F800000u);
  return (nan & quiet) | (~nan & rounded);
}
SPT_INLINE void vf_store_bf16(uint16_t *p, vf x) {
#if defined(SPT_AVX512_BF16)
  const __m256bh narrow = _mm512_cvtneps_pbh((__m512)x);
  memcpy(p, &narrow, sizeof narrow);
#elif defined(SPT_AVX512)
  _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16((__m512i)vf_bf16_bits(x)));
#elif defined(SPT_AVX2)
  const __m256i bits = (__m256i)vf_bf16_bits(x), packed = _mm256_packus_epi32(bits, bits);
  _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
  const vu bits = vf_bf16_bits(x);
  for (int i = 0; i < SPT_LANES; i++) p[i] = (uint16_t)bits[i];
#endif
}

/* Element i on of an array of activations; `bf16` is a constant after inlining. */
SPT_INLINE vf vf_load_act(const void *p, int64_t i, bool bf16) {
  return bf16 ? vf_load_bf16((const uint16_t *)p + i) : vf_load((const float *)p + i);
}
SPT_INLINE void vf_store_act(void *p, int64_t i, vf x, bool bf16) {
  if (bf16)
    vf_store_bf16((uint16_t *)p + i, x);
  else
    vf_store((float *)p + i, x);
}
SPT_INLINE vf vf_load_act_part(const void *p, int64_t i, int64_t n, bool bf16) {
  if (!bf16) return vf_load_part((const float *)p + i, n);
  uint16_t part[SPT_LANES] = {0};
  memcpy(part, (const uint16_t *)p + i, (size_t)n * sizeof *part);
  return vf_load_bf16(part);
}
SPT_INLINE void vf_store_act_part(void *p, int64_t i, vf x, int64_t n, bool bf16) {
  if (!bf16) {
    vf_store_part((float *)p + i, x, n);
    return;
  }
  uint16_t part[SPT_LANES];
  vf_store_bf16(part, x);
  memcpy((uint16_t *)p + i, part, (size_t)n * sizeof *part);
}

/* 2^x, relative error below 2e-7; below −126, 2^−126 or less; meaningless for −infinity and above 127.
 * 2^x = 2^n·2^r, |r| ≤ ½, and a minimax polynomial of degree 5 (7.5e-8). */
SPT_INLINE vf vf_exp2(vf x) {
#if defined(SPT_AVX512)
  const vf n = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  x = vf_max(vf_set(-126.0f), x); // in this order a NaN stays one
  const vf n = (x + 12582912.0f) - 12582912.0f; // 1.5·2^23: rounds to the nearest integer
#endif
  const vf r = x - n;
  vf p = vf_fma(vf_set(1.327647207e-3f), r, vf_set(9.675541407e-3f));
  p = vf_fma(p, r, vf_set(5.550713274e-2f));
  p = vf_fma(p, r, vf_set(2.402211972e-1f));
  p = vf_fma(p, r, vf_set(6.931469671e-1f));
  p = vf_fma(p, r, vf_set(1.000000072f));
#if defined(SPT_AVX512)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return p * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
#endif
}
/* exp(x) by 2^(x·log2 e): relative error below |x|·1e-7 + 2e-7. */
SPT_INLINE vf vf_exp(vf x) {
  return vf_exp2(x * 1.44269504088896341f);
}
/* 1/x, x in the normal range: relative error below 3e-7. */
SPT_INLINE vf vf_reciprocal(vf x) {
#if defined(SPT_AVX512)
  const vf y = (vf)_mm512_rcp14_ps((__m512)x); // 2^-14, and one Newton step
  return y * vf_fma(-x, y, vf_set(2.0f));
#else
  return 1.0f / x;
#endif
}
/* 1/(1 + exp(−x)), for any x: far out it is 0 or 1. */
SPT_INLINE vf vf_sigmoid(vf x) {
  const vf t = vf_max(x * -1.44269504088896341f, vf_set(-126.0f)); // exp2 of more than 127 must not be asked for
  const vf bounded = -vf_max(-t, vf_set(-126.0f));
  return vf_reciprocal(1.0f + vf_exp2(bounded));
}

/* Transposes a block of SPT_LANES vectors: in stage s, lanes whose number has bit s change places between vectors i and
 * i + s. The masks are spelled out, for the compiler to see constants. */
#define SPT_LOW(s, k) ((k) & (s) ? SPT_LANES + (k) - (s) : (k))
#define SPT_HIGH(s, k) ((k) & (s) ? SPT_LANES + (k) : (k) + (s))
#define SPT_LANES4(f, s, k) f(s, (k)), f(s, (k) + 1), f(s, (k) + 2), f(s, (k) + 3)
#if SPT_LANES == 16
#define SPT_MASK(f, s) SPT_LANES4(f, s, 0), SPT_LANES4(f, s, 4), SPT_LANES4(f, s, 8), SPT_LANES4(f, s, 12)
#elif SPT_LANES == 8
#define SPT_MASK(f, s) SPT_LANES4(f, s, 0), SPT_LANES4(f, s, 4)
#else
#define SPT_MASK(f, s) SPT_LANES4(f, s, 0)
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SPT_SHUFFLE(a, b, f, s) __builtin_shufflevector(a, b, SPT_MASK(f, s))
#else
#define SPT_SHUFFLE(a, b, f, s) __builtin_shuffle(a, b, (const vi){SPT_MASK(f, s)})
#endif
#define SPT_TRANSPOSE_STAGE(x, s)                                                                                      \
  do {                                                                                                                 \
    _Pragma("GCC unroll 16") for (int i_ = 0; i_ < SPT_LANES; i_++) {                                                  \
      if (i_ & (s)) continue;                                                                                          \
      const vf a_ = x[i_], b_ = x[i_ + (s)];                                                                           \
      x[i_] = SPT_SHUFFLE(a_, b_, SPT_LOW, s);                                                                         \
      x[i_ + (s)] = SPT_SHUFFLE(a_, b_, SPT_HIGH, s);                                                                  \
    }                                                                                                                  \
  } while (0)
SPT_INLINE void vf_transpose(vf x[SPT_LANES]) {
  SPT_TRANSPOSE_STAGE(x, 1);
  SPT_TRANSPOSE_STAGE(x, 2);
#if SPT_LANES >= 8
  SPT_TRANSPOSE_STAGE(x, 4);
#endif
#if SPT_LANES >= 16
  SPT_TRANSPOSE_STAGE(x, 8);
#endif
}

#endif
