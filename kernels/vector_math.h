/* Scalars that vectorise: bf16 conversion (round to nearest, ties to even) and exp. Everything here is inlined into
 * loops marked `omp simd`; functions with such loops carry SPT_CLONES, which compiles them for several instruction sets
 * and picks at load time. */
#ifndef SPT_VECTOR_MATH_H
#define SPT_VECTOR_MATH_H

#include "core/backend.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__) &&                       \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && __GNUC__ >= 12
#define SPT_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define SPT_CLONES
#endif
#define SPT_INLINE static inline __attribute__((always_inline))
/* Leaf loops are written once for both activation types; `bf16` is a constant after inlining. */
#define SPT_BY_DTYPE(dtype, function, ...)                                                                             \
  do {                                                                                                                 \
    if ((dtype) == SPT_BF16)                                                                                           \
      function(__VA_ARGS__, true);                                                                                     \
    else                                                                                                               \
      function(__VA_ARGS__, false);                                                                                    \
  } while (0)

static inline int64_t spt_min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline int64_t spt_max(int64_t a, int64_t b) {
  return a > b ? a : b;
}
static inline int64_t spt_blocks(int64_t count, int64_t block) {
  return (count + block - 1) / block;
}

SPT_INLINE float spt_bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
SPT_INLINE uint32_t spt_float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
SPT_INLINE float spt_from_bf16(uint16_t value) {
  return spt_bits_to_float((uint32_t)value << 16);
}
SPT_INLINE uint16_t spt_to_bf16(float value) {
  const uint32_t bits = spt_float_to_bits(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u; // a NaN must not round to infinity
  return (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded);
}
SPT_INLINE float spt_load(const void *data, int64_t i, bool bf16) {
  return bf16 ? spt_from_bf16(((const uint16_t *)data)[i]) : ((const float *)data)[i];
}
SPT_INLINE void spt_store(void *data, int64_t i, float value, bool bf16) {
  if (bf16)
    ((uint16_t *)data)[i] = spt_to_bf16(value);
  else
    ((float *)data)[i] = value;
}
/* The address of element i of an array of `dtype`. */
static inline void *spt_at(const void *data, int64_t i, spt_dtype dtype) {
  return (unsigned char *)(uintptr_t)data + i * (int64_t)spt_dtype_size(dtype);
}

/* exp(x), relative error below 2e-7 for results in the normal range; 0 below −87.3, +infinity above 88.7, NaN for NaN.
 * exp(x) = 2^n·exp(r) with |r| ≤ ln2/2 and a minimax polynomial of degree 6 (Cephes' expf). */
SPT_INLINE float spt_exp(float x) {
  const float clamped = x < -87.3f ? -87.3f : (x > 88.7f ? 88.7f : x);
  const float shifted = clamped * 1.44269504088896341f + 12582912.0f; // 1.5·2^23: rounds to the nearest integer
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two halves, so that n = 128 (results just below the largest float) does not overflow the exponent
  const int32_t whole = (int32_t)n, half = whole >> 1;
  float result =
      p * spt_bits_to_float((uint32_t)(half + 127) << 23) * spt_bits_to_float((uint32_t)(whole - half + 127) << 23);
  result = x < -87.3f ? 0.0f : result;
  result = x > 88.7f ? INFINITY : result;
  return x != x ? x : result;
}

#endif
