/* For tests in C: how often the host has waited for the simulated device so far. */
#ifndef SIMGPU_WAITS_H
#define SIMGPU_WAITS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

int64_t simgpu_waits(void);

#ifdef __cplusplus
}
#endif
#endif
