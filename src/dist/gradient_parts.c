#include "gradient_parts.h"

/* Has one owner: see own_all in shard_plan.c. */
static bool is_whole(const spt_shard_plan *plan, const spt_tensor *tensor) {
  return plan->pair_owner && (tensor->pair >= 0 || tensor->role == SPT_ROLE_GAIN);
}

/* Position of the tensor in its bucket: the same for any number of ranks where the bucket is cut. */
static int64_t position(const spt_shard_plan *plan, int tensor) {
  const int64_t offset = plan->layout.offset[tensor];
  int64_t begin = 0;
  for (int b = 0; b < plan->bucket_count; b++)
    if (plan->buckets[b].begin <= offset && offset < plan->buckets[b].end) begin = plan->buckets[b].begin;
  return offset - begin;
}

int64_t spt_gradient_parts(const spt_shard_plan *plan, const spt_params *params, int64_t *first_p) {
  int64_t parts = 0;
  for (int t = 0; t < params->tensor_count; t++) {
    const spt_tensor *tensor = &params->tensors[t];
    const int64_t at = position(plan, t);
    first_p[t] = parts;
    parts += is_whole(plan, tensor) ? 1 : (at + tensor->count - 1) / SPT_GRADIENT_PART - at / SPT_GRADIENT_PART + 1;
  }
  first_p[params->tensor_count] = parts;
  return parts;
}

static spt_status add_part(spt_backend *backend, int64_t count, const float *gradients, spt_control *control, double *sum,
                           double *non_finite_p) {
  spt_control found = {0};
  SPT_TRY(backend->ops->upload(backend, control, &found, sizeof found));
  SPT_TRY(backend->ops->gradient_stats(backend, count, gradients, 0, control)); // groups are summed from the parts
  SPT_TRY(backend->ops->download(backend, &found, control, sizeof found));
  *sum = found.sum_squares;
  *non_finite_p += found.non_finite;
  return SPT_OK;
}

spt_status spt_gradient_part_sums(spt_backend *backend, const spt_shard_plan *plan, const spt_params *params, int rank,
                                  const float *gradients, spt_control *control, const int64_t *first, double *sums, double *non_finite_p) {
  const spt_share *share = &plan->shares[rank];
  for (int i = 0; i < share->pair_count; i++) {
    const spt_pair *pair = &params->pairs[share->pairs[i]];
    for (int side = 0; side < spt_pair_sides(pair); side++) {
      const int tensor = spt_pair_tensor(pair, side);
      SPT_TRY(add_part(backend, params->tensors[tensor].count, gradients + plan->layout.offset[tensor], control, &sums[first[tensor]],
                       non_finite_p));
    }
  }
  for (int i = 0; i < share->slice_count; i++) {
    const spt_slice *slice = &share->slices[i];
    const float *values = gradients + plan->layout.offset[slice->tensor];
    const bool whole = is_whole(plan, &params->tensors[slice->tensor]);
    const int64_t at = position(plan, slice->tensor), first_piece = at / SPT_GRADIENT_PART;
    for (int64_t begin = slice->begin, end; begin < slice->end; begin = end) {
      const int64_t piece = (at + begin) / SPT_GRADIENT_PART;
      end = (piece + 1) * SPT_GRADIENT_PART - at;
      if (whole || end > slice->end) end = slice->end;
      SPT_TRY(add_part(backend, end - begin, values + begin, control, &sums[first[slice->tensor] + (whole ? 0 : piece - first_piece)],
                       non_finite_p));
    }
  }
  return SPT_OK;
}
