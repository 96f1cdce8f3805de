/* Files named by a step, step-00001000.h5 and the like, in one folder. Local. */
#ifndef SPT_STEP_FILES_H
#define SPT_STEP_FILES_H

#include "core/config.h"

/* Exactly the names this program writes: "step-00001000" and the suffix (".h5"). */
bool spt_step_file_parse(const char *name, const char *suffix, int64_t *step_p);
/* "<folder>/step-00001000.h5" */
void spt_step_file_path(const char *folder, int64_t step, const char *suffix, char path[SPT_PATH_MAX]);
/* The steps of the folder's files of this suffix, ascending; malloc'ed, the caller frees. A folder that is not there holds none.
 * SPT_ERR_RESOURCE when it cannot be read. */
spt_status spt_step_files_list(const char *folder, const char *suffix, int64_t **steps_p, size_t *count_p);

#endif
