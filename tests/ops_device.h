/* The backend that a conformance test's binary is linked with: ops_device_cpu.c or ops_device_cuda.c, and what sees more of it:
 * simgpu/ops_device_simgpu.cpp, or, on real hardware, ops_device_uncounted.c. */
#ifndef SPT_OPS_DEVICE_H
#define SPT_OPS_DEVICE_H

#ifdef __cplusplus
extern "C" {
#endif

#include "core/backend.h"

/* NULL, or in words why its device is not here: then nothing can be tested. */
const char *ops_device_absent(void);
spt_status ops_device_open(spt_precision precision, int threads, spt_backend **backend_p);
/* Cases run with 1 … this many threads. */
int ops_device_threads(void);
/* Bytes of workspace that an op needs; attention's with backward. */
size_t ops_device_group_workspace(const spt_backend *backend, const spt_group_desc *desc, int64_t tokens, bool train);
size_t ops_device_head_workspace(const spt_backend *backend, int64_t tokens, int64_t hidden, int64_t vocab, bool train);
size_t ops_device_attention_workspace(const spt_backend *backend, const spt_attention_args *args);
/* What was made for new shapes so far: primitives, memory. */
int64_t ops_device_made(const spt_backend *backend);
/* Ways of computing attention, and the choice of one. */
int ops_device_attention_ways(void);
void ops_device_attention_way(spt_backend *backend, int way);
/* From now on no op may touch these bytes of backend memory, where the device can see to that; until allowed again. */
void ops_device_forbid(void *memory, size_t bytes);
void ops_device_allow(void *memory, size_t bytes);
/* Kernels launched and products made so far; -1 where they are not counted. */
int64_t ops_device_launches(void);
/* At the end: where launches are counted, prints those of each kernel and returns how many of them were never launched. */
int ops_device_unused(const char *const *kernels, size_t count);

#ifdef __cplusplus
}
#endif
#endif
