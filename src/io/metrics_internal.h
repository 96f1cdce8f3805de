/* What metrics.c and metrics_matrices.c share: the telemetry of matrices in a record. Not for other files. */
#ifndef SPT_METRICS_INTERNAL_H
#define SPT_METRICS_INTERNAL_H

#include "metrics.h"

#include <hdf5.h>
#include <jansson.h>

/* By name an object of numbers; NULL out of memory. */
json_t *spt_metric_matrices_to_json(const spt_metric_record *record);
/* Fills record->matrices, malloc'ed, from such an object (NULL: none); what is no number is NAN. False out of memory. */
bool spt_metric_matrices_from_json(const json_t *spectral, spt_metric_record *record);
/* A malloc'ed copy in the place of borrowed ones. False out of memory. */
bool spt_metric_matrices_copy(spt_metric_record *record);
void spt_metric_matrices_free(spt_metric_record *records, int64_t count);
/* The records and their matrices as one malloc'ed block; takes both over. NULL out of memory, then both are freed. */
spt_metric_record *spt_metric_records_pack(spt_metric_record *records, int64_t count);
/* `names`, and of each value an array (records that have telemetry, names), NAN where there is none. */
bool spt_metric_matrices_put(hid_t group, const spt_metric_record *records, int64_t count);

#endif
