#include "guidance.h"

#include "decimal.h"
#include "rng.h"

#include <math.h>

int64_t spt_guidance_steps(const spt_guidance_config *guidance, int64_t steps) {
  if (guidance->method == SPT_GUIDANCE_NONE) return 0;
  return spt_decimal_product(guidance->fraction, steps, true);
}

double spt_guidance_alpha(int64_t guided, int64_t t) {
  return t < guided ? 0.5 * (1 + cos(3.141592653589793 * (double)t / (double)guided)) : 0;
}

double spt_guidance_share(const spt_guidance_config *guidance, int64_t steps, int64_t t) {
  const int64_t guided = spt_guidance_steps(guidance, steps);
  if (t >= guided) return 0;
  return guidance->stochastic ? spt_guidance_alpha(guided, t) : 1;
}

double spt_guidance_sum(const spt_guidance_config *guidance, int64_t steps) {
  const int64_t guided = spt_guidance_steps(guidance, steps);
  return guidance->stochastic && guided > 0 ? ((double)guided + 1) / 2 : (double)guided; // the cosines sum to 1
}

void spt_guidance_draw(uint64_t seed, int64_t step, int64_t batch, double alpha, int64_t matrices, float *alphas) {
  const uint64_t stream = spt_random_bits(seed, spt_stream_of("guidance"), (uint64_t)step);
  for (int64_t i = 0; i < matrices; i++) {
    const double p = (double)(spt_random_bits(seed, stream, (uint64_t)(batch * matrices + i)) >> 11) * 0x1p-53;
    alphas[i] = p < alpha ? (float)alpha : 0.0f;
  }
}
