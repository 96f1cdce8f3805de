/* What a spike or a skipped step leaves in a run's folder: post-mortem/step-00000123.json, and hard links of the checkpoints that a replay
 * needs, post-mortem/step-00000100.h5. Of the files the first 20 and the newest 20 are kept, of the links the first and the newest. Nothing
 * outside of the folder is written, and nothing that this program did not make is replaced or removed: SPT_ERR_USAGE, for the caller
 * to tell of. Rank 0. */
#ifndef SPT_POST_MORTEM_H
#define SPT_POST_MORTEM_H

#include "core/config.h"

#define SPT_POST_MORTEM_FORMAT "spectron-post-mortem"
enum { SPT_POST_MORTEMS_KEPT = 20 /* first, and as many newest */ };

/* "<output>/post-mortem/step-00000123.json" */
void spt_post_mortem_path(const char *output, int64_t step, char path[SPT_PATH_MAX]);
/* Writes it, durably. text: one JSON object whose first key is "format". */
spt_status spt_post_mortem_write(const char *output, int64_t step, const char *text);
/* A run that goes on from `step`, or begins (0), leaves another time line: its files of later steps are renamed to ….kept-N. */
spt_status spt_post_mortem_set_aside(const char *output, int64_t step);
/* Links checkpoints/step-….h5 of `step` into post-mortem/. SPT_ERR_RESOURCE where the file system has no hard links, or there is no such file. */
spt_status spt_post_mortem_keep_checkpoint(const char *output, int64_t step);

#endif
