#include "text_documents.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct spt_text_documents {
  const char *const *paths; /* not owned */
  int path_count, next_path;
  spt_documents_split split;
  FILE *file;
  char *line;
  size_t line_capacity;
  int64_t done, total;
};

spt_status spt_text_documents_open(const char *const *paths, int path_count, spt_documents_split split,
                                   spt_text_documents **documents_p) {
  int64_t total = 0;
  for (int i = 0; i < path_count; i++) {
    struct stat about;
    FILE *file = fopen(paths[i], "rbe");
    if (!file || fstat(fileno(file), &about) != 0 || !S_ISREG(about.st_mode)) {
      const char *reason = file ? "not a regular file" : strerror(errno);
      if (file) fclose(file);
      return SPT_FAIL(SPT_ERR_DATA, "%s: cannot be read as text: %s", paths[i], reason);
    }
    fclose(file);
    total += about.st_size;
  }
  spt_text_documents *documents = calloc(1, sizeof *documents);
  if (!documents) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  *documents = (spt_text_documents){.paths = paths, .path_count = path_count, .split = split, .total = total};
  *documents_p = documents;
  return SPT_OK;
}

void spt_text_documents_close(spt_text_documents **documents_p) {
  spt_text_documents *documents = *documents_p;
  if (!documents) return;
  if (documents->file) fclose(documents->file);
  free(documents->line);
  free(documents);
  *documents_p = NULL;
}

static bool is_blank(const char *line, size_t bytes) {
  for (size_t i = 0; i < bytes; i++)
    if (!strchr(" \t\r\n", line[i]) || line[i] == '\0') return false;
  return true;
}

/* Adds lines to `out` up to a blank line or the end of the file, which is closed then. */
static spt_status add_lines(spt_text_documents *documents, FILE *out) {
  const char *path = documents->paths[documents->next_path - 1];
  for (bool any = false;;) {
    errno = 0;
    const ssize_t got = getline(&documents->line, &documents->line_capacity, documents->file);
    if (got < 0) {
      if (ferror(documents->file) || errno == ENOMEM)
        return SPT_FAIL(SPT_ERR_RESOURCE, "%s: cannot be read: %s", path, strerror(errno));
      fclose(documents->file);
      documents->file = NULL;
      return SPT_OK;
    }
    documents->done += got;
    if (documents->split == SPT_DOCUMENTS_BLANK_LINE && is_blank(documents->line, (size_t)got)) {
      if (any) return SPT_OK;
      continue;
    }
    any = true;
    if (fwrite(documents->line, 1, (size_t)got, out) != (size_t)got)
      return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for a document", path);
  }
}

spt_status spt_text_documents_next(spt_text_documents *documents, char **text_p, size_t *bytes_p) {
  *text_p = NULL;
  *bytes_p = 0;
  while (documents->file || documents->next_path < documents->path_count) {
    if (!documents->file) {
      const char *path = documents->paths[documents->next_path++];
      if (!(documents->file = fopen(path, "rbe")))
        return SPT_FAIL(SPT_ERR_DATA, "%s: cannot be read as text: %s", path, strerror(errno));
    }
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
    spt_status status = add_lines(documents, out);
    if (fclose(out) != 0 && status == SPT_OK) status = SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for a document");
    while (status == SPT_OK && bytes && (text[bytes - 1] == '\n' || text[bytes - 1] == '\r')) text[--bytes] = '\0';
    if (status == SPT_OK && bytes) {
      *text_p = text;
      *bytes_p = bytes;
      return SPT_OK;
    }
    free(text);
    SPT_TRY(status);
  }
  return SPT_OK;
}

int64_t spt_text_documents_done(const spt_text_documents *documents) {
  return documents->done;
}

int64_t spt_text_documents_total(const spt_text_documents *documents) {
  return documents->total;
}
