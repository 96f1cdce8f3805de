#include "gemm.h"

namespace simgpu {

namespace {
constexpr int TILE = 32;

/* A column of up to TILE elements. */
template <bool WHOLE> void column(int count, int m, int k, const float *a, const float *b, float *c) {
  float sum[TILE] = {};
  const int size = WHOLE ? TILE : count;
  for (int l = 0; l < k; l++)
    for (int i = 0; i < size; i++) sum[i] += a[(long)l * m + i] * b[l];
  for (int i = 0; i < size; i++) c[i] = sum[i];
}
} // namespace

void multiply(int m, int n, int k, const float *a, const float *b, float *c) {
  for (int i = 0; i < m; i += TILE)
    for (int j = 0; j < n; j++) {
      const bool whole = m - i >= TILE;
      (whole ? column<true> : column<false>)(m - i, m, k, a + i, b + (long)j * k, c + (long)j * m + i);
    }
}

} // namespace simgpu
