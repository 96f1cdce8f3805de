/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
 * Every value is a pure function of (seed, stream, index): nothing depends on ranks, threads or order. */
#ifndef SPT_RNG_H
#define SPT_RNG_H

#include <stdint.h>

/* The four 32-bit words of block `counter` of stream (seed, stream). */
void spt_philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]);
/* 64 random bits for (seed, stream, index). */
uint64_t spt_random_bits(uint64_t seed, uint64_t stream, uint64_t index);
/* out[i] = mean 0, deviation `std` normal number (Box–Muller in double) for index begin + i, i in [0, count). */
void spt_random_normal(uint64_t seed, uint64_t stream, int64_t begin, int64_t count, double std, float *out);
/* A stream number for a name (FNV-1a 64), so that a tensor's numbers depend on its name only. */
uint64_t spt_stream_of(const char *name);

#endif
