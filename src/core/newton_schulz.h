/* Newton–Schulz orthogonalisation of a batch of equal shapes (arXiv:2602.12429, Alg. 2; Jordan et al. 2024). */
#ifndef SPT_NEWTON_SCHULZ_H
#define SPT_NEWTON_SCHULZ_H

#include "backend.h"

/* Elements of scratch per matrix of a batch: one more X (rows·cols) and two of s², s = min(rows, cols). */
int64_t spt_newton_schulz_scratch(int64_t rows, int64_t cols);

/* x[i] (rows, cols), already divided by its Frobenius norm (+1e-7), i in [0, batch), is orthogonalised by `steps` of
 *   X ← a·X + X·(b·G + c·G²), G = XᵀX   (rows ≥ cols; else the mirror image with G = X·Xᵀ: always the short side)
 * with (a, b, c) = (3.4445, −4.7750, 2.0315). On return x[i] points to the result, in the given matrix or in the scratch, and both are
 * overwritten. scratch: batch·spt_newton_schulz_scratch elements of `dtype`; lists: 4·batch pointers of host memory. Local. */
spt_status spt_newton_schulz(spt_backend *backend, int64_t batch, int64_t rows, int64_t cols, spt_dtype dtype,
                             int steps, void **x, void *scratch, void **lists);

#endif
