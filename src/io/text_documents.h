/* Text files as a stream of documents, one at a time in memory. */
#ifndef SPT_TEXT_DOCUMENTS_H
#define SPT_TEXT_DOCUMENTS_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum { SPT_DOCUMENTS_BLANK_LINE, SPT_DOCUMENTS_FILE } spt_documents_split;

typedef struct spt_text_documents spt_text_documents;

/* paths is borrowed until close. SPT_ERR_DATA when a file cannot be opened (all are tried at once). */
spt_status spt_text_documents_open(const char *const *paths, int path_count, spt_documents_split split,
                                   spt_text_documents **documents_p);
void spt_text_documents_close(spt_text_documents **documents_p);
/* Adds the next document to *text_p, malloc'ed, the caller frees: its lines without the last newline; *text_p = NULL at
 * the end. Empty documents are left out. The end of a file ends a document too. */
spt_status spt_text_documents_next(spt_text_documents *documents, char **text_p, size_t *bytes_p);
/* Bytes read so far and in all files, for progress. */
int64_t spt_text_documents_done(const spt_text_documents *documents);
int64_t spt_text_documents_total(const spt_text_documents *documents);

#endif
