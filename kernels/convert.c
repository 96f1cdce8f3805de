#include "simd.h"
#include "simd_kernels.h"

void SPT_SIMD(convert)(void *dst, spt_dtype dst_dtype, const void *src, spt_dtype src_dtype, int64_t count) {
  int64_t i = 0;
  if (dst_dtype == src_dtype) {
    memmove(dst, src, (size_t)count * spt_dtype_size(dst_dtype));
    return;
  }
  if (dst_dtype == SPT_BF16) {
    for (; i + SPT_LANES <= count; i += SPT_LANES) vf_store_bf16((uint16_t *)dst + i, vf_load((const float *)src + i));
    if (i < count) vf_store_act_part(dst, i, vf_load_part((const float *)src + i, count - i), count - i, true);
  } else {
    for (; i + SPT_LANES <= count; i += SPT_LANES) vf_store((float *)dst + i, vf_load_bf16((const uint16_t *)src + i));
    if (i < count) vf_store_part((float *)dst + i, vf_load_act_part(src, i, count - i, true), count - i);
  }
}

SPT_INLINE void transpose_block(int64_t rows, int64_t cols, const float *src, int64_t ld_src, void *dst, int64_t ld_dst,
                                bool bf16, bool round) {
  vf block[SPT_LANES];
#pragma GCC unroll 16
  for (int i = 0; i < SPT_LANES; i++) {
    if (i >= rows)
      block[i] = vf_zero();
    else
      block[i] = cols < SPT_LANES ? vf_load_part(src + i * ld_src, cols) : vf_load(src + i * ld_src);
    if (round && !bf16) block[i] = (vf)(vf_bf16_bits(block[i]) << 16);
  }
  vf_transpose(block);
  for (int64_t c = 0; c < spt_min(SPT_LANES, cols); c++) {
    if (rows >= SPT_LANES)
      vf_store_act(dst, c * ld_dst, block[c], bf16);
    else
      vf_store_act_part(dst, c * ld_dst, block[c], rows, bf16);
  }
}

void SPT_SIMD(transpose)(int64_t rows, int64_t cols, const float *src, int64_t ld_src, void *dst, int64_t ld_dst,
                         spt_dtype dst_dtype, bool round) {
  for (int64_t c = 0; c < cols; c += SPT_LANES)
    for (int64_t i = 0; i < rows; i += SPT_LANES) {
      void *to = spt_at(dst, c * ld_dst + i, dst_dtype);
      const float *from = src + i * ld_src + c;
      if (dst_dtype == SPT_BF16)
        transpose_block(rows - i, cols - c, from, ld_src, to, ld_dst, true, round);
      else
        transpose_block(rows - i, cols - c, from, ld_src, to, ld_dst, false, round);
    }
}

SPT_INLINE void store_loop(int64_t rows, int64_t cols, float factor, const float *src, int64_t ld_src, void *dst,
                           int64_t ld_dst, bool bf16) {
  for (int64_t i = 0; i < rows; i++) {
    const float *from = src + i * ld_src;
    int64_t c = 0;
    for (; c + SPT_LANES <= cols; c += SPT_LANES) vf_store_act(dst, i * ld_dst + c, vf_load(from + c) * factor, bf16);
    if (c < cols) vf_store_act_part(dst, i * ld_dst + c, vf_load_part(from + c, cols - c) * factor, cols - c, bf16);
  }
}
void SPT_SIMD(store_rows)(int64_t rows, int64_t cols, float factor, const float *src, int64_t ld_src, void *dst,
                          int64_t ld_dst, spt_dtype dst_dtype) {
  SPT_BY_DTYPE(dst_dtype, store_loop, rows, cols, factor, src, ld_src, dst, ld_dst);
}
