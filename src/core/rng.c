#include "rng.h"

#include <math.h>

void spt_philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]) {
  uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
  uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
    const uint32_t high0 = (uint32_t)(product0 >> 32), high1 = (uint32_t)(product1 >> 32);
    c0 = high1 ^ c1 ^ key0;
    c1 = (uint32_t)product1;
    c2 = high0 ^ c3 ^ key1;
    c3 = (uint32_t)product0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

uint64_t spt_random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
  uint32_t word[4];
  spt_philox(seed, stream, index >> 1, word);
  return index & 1 ? (uint64_t)word[2] << 32 | word[3] : (uint64_t)word[0] << 32 | word[1];
}

void spt_random_normal(uint64_t seed, uint64_t stream, int64_t begin, int64_t count, double std, float *out) {
  for (int64_t i = 0; i < count;) {
    const uint64_t index = (uint64_t)(begin + i);
    uint32_t word[4];
    spt_philox(seed, stream, index >> 2, word);
    double normal[4];
    for (int half = 0; half < 2; half++) {
      const double u = (word[2 * half] + 0.5) * 0x1p-32, v = word[2 * half + 1] * 0x1p-32;
      const double radius = std * sqrt(-2.0 * log(u)), angle = 6.283185307179586 * v;
      normal[2 * half] = radius * cos(angle);
      normal[2 * half + 1] = radius * sin(angle);
    }
    for (int lane = (int)(index & 3); lane < 4 && i < count; lane++, i++) out[i] = (float)normal[lane];
  }
}

uint64_t spt_stream_of(const char *name) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 0x100000001B3u;
  return hash;
}
