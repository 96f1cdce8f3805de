/* metrics.jsonl (appended, one object a line) and metrics.h5 (the same series, rewritten by rename). Rank 0 only. Non-finite numbers are null.
 * A disk that fails loses no record as long as the run goes on: all are held in memory, and what could not be written is
 * written with what follows. */
#ifndef SPT_METRICS_H
#define SPT_METRICS_H

#include "core/gradient_groups.h"
#include "core/telemetry.h"

/* Telemetry of one matrix; `name` is its tensors' without .A, .B or .weight. */
typedef struct spt_metric_matrix {
  char name[SPT_NAME_MAX];
  spt_telemetry values;
} spt_metric_matrix;

/* The words that a job file has for them; NULL ends. */
extern const char *const spt_metric_reductions[], *const spt_metric_precisions[];

typedef struct spt_metric_record {
  int64_t step, tokens; /* completed */
  double loss, lr, grad_norm, tokens_per_second, step_seconds, data_wait_seconds, model_flops_per_second;
  double reduce_wait_seconds, gather_seconds, optimizer_seconds;
  double save_seconds; /* that saves held the steps up since the record before: snapshot, waiting for an unfinished one, tidying */
  int64_t reduce_bytes, reduce_messages, gather_bytes, gather_messages; /* per step */
  bool guided; /* the step had guides (guidance.h) */
  double guidance_alpha;
  bool validated;
  double validation_loss, perplexity, bits_per_byte; /* bits_per_byte NAN: unknown */
  double validation_loss_low_rank;                   /* of a guided step: without its guides */
  int64_t ranks, micro, threads; /* what computed the step; threads: of rank 0 */
  int64_t reduction, precision;  /* so did these: 0: not known, else 1 + the place in spt_metric_reductions, _precisions */
  double loss_z;                 /* NAN: not judged */
  int64_t spikes;                /* so far */
  uint32_t gradient_groups;      /* bit g: grad_norms[g] was taken (gradient_groups.h) */
  double grad_norms[SPT_GRADIENT_GROUPS];
  /* the telemetry of [metrics] spectral_every; matrix_count 0: not taken */
  double spectral_seconds;     /* what it took */
  int64_t spectral_violations; /* matrices for which a bound did not hold that always does */
  int matrix_count;
  spt_metric_matrix *matrices; /* given: borrowed; read: in the array's own memory */
} spt_metric_record;

typedef struct spt_metrics spt_metrics;

/* Opens <folder>/metrics.jsonl; lines after `step` (a resume's checkpoint) and a torn last line are cut off, so that each step stands once.
 * step 0 starts a new file. A link, or a file that begins otherwise than ours do, is SPT_ERR_USAGE. */
spt_status spt_metrics_open(const char *folder, int64_t step, spt_metrics **metrics_p);
/* Writes the record, after those that are still to be written. On SPT_ERR_RESOURCE it is kept, to be written later (unless
 * memory ran out). */
spt_status spt_metrics_append(spt_metrics *metrics, const spt_metric_record *record);
/* All records up to now; borrowed until the next append. */
const spt_metric_record *spt_metrics_records(const spt_metrics *metrics, int64_t *count_p);
/* A record as its line of JSON, without the end of the line; malloc'ed, NULL: out of memory. */
char *spt_metrics_line(const spt_metric_record *record);
/* The record of a line, all but its matrices; false: it is none. */
bool spt_metrics_parse_line(const char *line, size_t length, spt_metric_record *record_p);
/* Makes metrics.jsonl durable, with all records, also where the file has vanished; rewrites metrics.h5 (after a validation,
 * before a save, and at the end). SPT_OK: every record so far is on disk in both. */
spt_status spt_metrics_write_hdf5(spt_metrics *metrics);
void spt_metrics_close(spt_metrics **metrics_p);
/* All records of a metrics.jsonl; one malloc'ed block, matrices included, which the caller frees. A torn last line is left out. */
spt_status spt_metrics_read(const char *path, spt_metric_record **records_p, int64_t *count_p);

#endif
