/* kernels/mma.cuh for the simulator: the hardware's fragment layouts over the exchange of a warp, sums rounded toward zero as tensor cores do.
 * Asynchronous copies are as late as they can be: the data comes when it is waited for, until then the target is NaN. */
#ifndef SIMGPU_MMA_CUH
#define SIMGPU_MMA_CUH

#include "simgpu/block.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace simgpu {

enum mma_kind { MMA_BF16 = 100, MMA_TF32, LDMATRIX, LDMATRIX_TRANS };

struct mma_operands {
  uint32_t a[4], b[2];
};

static inline float bits_as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static inline float toward_zero(double exact) {
  const float nearest = (float)exact;
  return std::fabs((double)nearest) > std::fabs(exact) && std::isfinite(exact) ? std::nextafterf(nearest, 0.0f) : nearest;
}

/* Element (row g or g+8, k) of A, and (k, column) of B, among what the lanes gave: DEPTH 16 in pairs of bf16, or 8 in tf32. */
template <int DEPTH> float element(uint32_t low_half, uint32_t high_half, int k) {
  const uint32_t word = k < DEPTH / 2 ? low_half : high_half;
  return DEPTH == 8 ? bits_as_float(word & 0xffffe000u) : bits_as_float(k % 2 ? word & 0xffff0000u : word << 16);
}
template <int DEPTH>
void product(int kind, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], site at) {
  mma_operands own, row, column[2];
  memcpy(own.a, a, sizeof own.a);
  memcpy(own.b, b, sizeof own.b);
  const auto *all = warp_exchange(kind, 0xffffffffu, at, &own, sizeof own);
  const unsigned g = lane() / 4, t = lane() % 4;
  double sum[4] = {(double)c[0], (double)c[1], (double)c[2], (double)c[3]};
  for (unsigned from = 0; from < 4; from++) { // the lane of a group that holds the elements
    memcpy(&row, all[4 * g + from], sizeof row);
    for (unsigned j = 0; j < 2; j++) memcpy(&column[j], all[4 * (2 * t + j) + from], sizeof column[j]);
    for (int half = 0; half < 2; half++)
      for (int i = 0; i < DEPTH / 8; i++) {
        const int k = half * DEPTH / 2 + i;
        for (int out = 0; out < 4; out++)
          sum[out] += (double)element<DEPTH>(row.a[out / 2], row.a[2 + out / 2], k) *
                      (double)element<DEPTH>(column[out % 2].b[0], column[out % 2].b[1], k);
      }
  }
  for (int out = 0; out < 4; out++) c[out] = toward_zero(sum[out]);
  warp_seen();
}

/* Each lane reads the row that it addresses; r[i] is of matrix i's row g, or of its column g. */
static inline void ldmatrix(int kind, uint32_t (&r)[4], const void *row, site at) {
  if ((uintptr_t)row % 16 != 0) fault("ldmatrix at %s:%d: a row at %p is not aligned to 16 bytes", at.file, at.line, row);
  check_shared(row, 16, at);
  unsigned char own[16];
  memcpy(own, row, sizeof own);
  const auto *all = warp_exchange(kind, 0xffffffffu, at, own, sizeof own);
  const unsigned g = lane() / 4, t = lane() % 4;
  for (unsigned i = 0; i < 4; i++) {
    if (kind == LDMATRIX) {
      memcpy(&r[i], all[8 * i + g] + 4 * t, 4);
      continue;
    }
    uint16_t pair[2];
    for (unsigned j = 0; j < 2; j++) memcpy(&pair[j], all[8 * i + 2 * t + j] + 2 * g, 2);
    memcpy(&r[i], pair, 4);
  }
  warp_seen();
}

} // namespace simgpu

/* Where a function is called, as its last parameters. */
#define SIMGPU_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()
static inline void spt_mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMGPU_CALLER) {
  simgpu::product<16>(simgpu::MMA_BF16, c, a, b, {file, line});
}
static inline void spt_mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMGPU_CALLER) {
  simgpu::product<8>(simgpu::MMA_TF32, c, a, b, {file, line});
}
static inline uint32_t spt_tf32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return std::isfinite(value) ? (bits + 0x1000u) & 0xffffe000u : bits;
}
static inline void spt_ldmatrix_x4(uint32_t (&r)[4], const void *row, SIMGPU_CALLER) {
  simgpu::ldmatrix(simgpu::LDMATRIX, r, row, {file, line});
}
static inline void spt_ldmatrix_x4_trans(uint32_t (&r)[4], const void *row, SIMGPU_CALLER) {
  simgpu::ldmatrix(simgpu::LDMATRIX_TRANS, r, row, {file, line});
}
template <int BYTES> void spt_cp_async(void *shared, const void *global, int bytes, SIMGPU_CALLER) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  simgpu::copy_later(shared, global, BYTES, bytes, {file, line});
}
static inline void spt_cp_async_commit() {
  simgpu::commit_copies();
}
template <int PENDING> void spt_cp_async_wait() {
  simgpu::wait_copies(PENDING);
}

#endif
