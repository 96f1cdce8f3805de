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
