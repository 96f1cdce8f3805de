/* Self-guided training (Wei et al. 2024; arXiv:2602.12429, App. C, Eq. 17–19): while guidance lasts, each factorised matrix computes
 * o = alpha·W·x + (1 − alpha)·A·Bᵀ·x with a dense guide W, W_0 = A_0·B_0ᵀ. Here: alpha by step, and the stochastic variant's draws. Pure functions. */
#ifndef SPT_GUIDANCE_H
#define SPT_GUIDANCE_H

#include "config.h"

/* Steps with guides of a run of `steps`: ⌈fraction·steps⌉, 0 without guidance. */
int64_t spt_guidance_steps(const spt_guidance_config *guidance, int64_t steps);
/* alpha in step t (from 0) of `guided` steps: ½·(1 + cos(π·t/guided)), 0 from step `guided` on. */
double spt_guidance_alpha(int64_t guided, int64_t t);
/* Part of the matrices' passes in step t that are expected to use their guides: all, or alpha with the stochastic variant; 0 without guides. */
double spt_guidance_share(const spt_guidance_config *guidance, int64_t steps, int64_t t);
/* The sum of the above over the steps: all guided steps, or half of them and a half (Σ alpha). */
double spt_guidance_sum(const spt_guidance_config *guidance, int64_t steps);
/* The stochastic variant: alpha of each of `matrices` matrices in one micro-batch of a step, alpha itself where a draw p ~ U[0, 1) is below it, else
 * 0: the guide is dropped and the factors are not scaled (Eq. 19). p is a function of (seed, step, batch, matrix) alone. */
void spt_guidance_draw(uint64_t seed, int64_t step, int64_t batch, double alpha, int64_t matrices, float *alphas);

#endif
