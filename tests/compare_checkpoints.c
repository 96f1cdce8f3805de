/* compare_checkpoints A B TOLERANCE: every dataset of two checkpoints, the largest difference relative to the tensor's largest value (0: bit for bit).
 * Prints the worst; exits 1 when it exceeds the tolerance, 2 on errors. */
#include "io/checkpoint.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double compare(const float *a, const float *b, int64_t count) {
  double difference = 0, largest = 0;
  for (int64_t i = 0; i < count; i++) {
    if (!isfinite(a[i]) || !isfinite(b[i])) return INFINITY;
    difference = fmax(difference, fabs((double)a[i] - b[i]));
    largest = fmax(largest, fabs((double)a[i]));
  }
  return difference == 0 ? 0 : difference / (largest > 0 ? largest : 1);
}

static spt_status compare_files(spt_checkpoint *a, spt_checkpoint *b, double tolerance, double *worst_p, const char **where_p) {
  const int count = spt_checkpoint_dataset_count(a);
  if (count != spt_checkpoint_dataset_count(b)) return SPT_FAIL(SPT_ERR_DATA, "numbers of datasets differ");
  if (spt_checkpoint_header_of(a)->step != spt_checkpoint_header_of(b)->step) return SPT_FAIL(SPT_ERR_DATA, "steps differ");
  for (int i = 0; i < count; i++) {
    const char *name;
    int64_t rows, cols, other_rows, other_cols;
    SPT_TRY(spt_checkpoint_dataset(a, i, &name, &rows, &cols));
    const int j = spt_checkpoint_find(b, name);
    if (j < 0) return SPT_FAIL(SPT_ERR_DATA, "%s is in one file only", name);
    SPT_TRY(spt_checkpoint_dataset(b, j, &(const char *){NULL}, &other_rows, &other_cols));
    if (rows != other_rows || cols != other_cols) return SPT_FAIL(SPT_ERR_DATA, "%s has two shapes", name);
    float *x = malloc((size_t)(rows * cols) * sizeof *x), *y = malloc((size_t)(rows * cols) * sizeof *y);
    spt_status status = x && y ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
    if (status == SPT_OK) status = spt_checkpoint_read(a, i, x);
    if (status == SPT_OK) status = spt_checkpoint_read(b, j, y);
    double difference = status == SPT_OK ? compare(x, y, rows * cols) : 0;
    if (status == SPT_OK && tolerance == 0 && memcmp(x, y, (size_t)(rows * cols) * sizeof *x) != 0 && difference == 0)
      difference = INFINITY; // differs only in the sign of a zero
    free(x);
    free(y);
    SPT_TRY(status);
    if (difference > *worst_p) {
      *worst_p = difference;
      *where_p = name;
    }
  }
  return SPT_OK;
}

int main(int argc, char **argv) {
  if (argc != 4) return fprintf(stderr, "usage: compare_checkpoints A B TOLERANCE\n"), 2;
  spt_checkpoint *a = NULL, *b = NULL;
  const double tolerance = atof(argv[3]);
  double worst = 0;
  const char *where = "-";
  spt_status status = spt_checkpoint_open(argv[1], &a);
  if (status == SPT_OK) status = spt_checkpoint_open(argv[2], &b);
  if (status == SPT_OK) status = compare_files(a, b, tolerance, &worst, &where);
  if (status != SPT_OK) fprintf(stderr, "compare_checkpoints: %s\n", spt_error_message());
  else printf("largest relative difference %.3e in %s\n", worst, where);
  spt_checkpoint_close(&a);
  spt_checkpoint_close(&b);
  return status != SPT_OK ? 2 : worst > tolerance;
}
