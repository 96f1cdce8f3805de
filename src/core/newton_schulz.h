/* Newton–Schulz orthogonalisation of a batch of equal shapes (arXiv:2602.12429, Alg. 2; Jordan et al. 2024). */
#ifndef SPT_NEWTON_SCHULZ_H
#define SPT_NEWTON_SCHULZ_H

#include "backend.h"

/* What an iteration does to each singular value: s ← a·s + b·s³ + c·s⁵. */
typedef struct spt_polynomial {
  float a, b, c;
} spt_polynomial;

/* Of iteration `step` (from 0). The quintic has one for all, the job's coefficients (spt_quintic). Polar Express (Amsel, Persson, Musco, Gower 2025,
 * arXiv:2505.16932, Alg. 1): the composition that is best for singular values in [1e-3, 1], one polynomial an iteration, the last for all that follow;
 * their factor of safety, 1.01, is in all but that one, and that of the norm in the first. */
spt_polynomial spt_newton_schulz_polynomial(const spt_optimizer_config *config, int step);

/* SPT_ERR_USAGE where the job's method orthogonalises and its quintic takes a singular value of [1/16, 1], after all its iterations, out of [1e-3, 10] (0, negative, not finite): the
 * update would vanish, climb or diverge. */
spt_status spt_newton_schulz_check(const spt_optimizer_config *config);

/* Elements of scratch per matrix of a batch: one more X (rows·cols) and two of s², s = min(rows, cols). */
int64_t spt_newton_schulz_scratch(int64_t rows, int64_t cols);

/* x[i] (rows, cols), already divided by its Frobenius norm (+1e-7), i in [0, batch), is orthogonalised by newton_schulz_steps of
 *   X ← a·X + X·(b·G + c·G²), G = XᵀX   (rows ≥ cols; else the mirror image with G = X·Xᵀ: always the short side)
 * On return x[i] points to the result, in the given matrix or in the scratch, and both are overwritten. scratch: batch·spt_newton_schulz_scratch
 * elements of `dtype`; lists: 4·batch pointers of host memory. Local. */
spt_status spt_newton_schulz(spt_backend *backend, const spt_optimizer_config *config, int64_t batch, int64_t rows, int64_t cols, spt_dtype dtype,
                             void **x, void *scratch, void **lists);

#endif
