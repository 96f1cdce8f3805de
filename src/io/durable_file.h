/* Whole reads and writes at an offset, and files that appear under their name only when they are durable: write
 * `path`.part, fsync, close, rename, fsync the folder. SPT_ERR_RESOURCE for writing (path, reason, bytes needed),
 * SPT_ERR_DATA for reading. */
#ifndef SPT_DURABLE_FILE_H
#define SPT_DURABLE_FILE_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

spt_status spt_file_write_at(int fd, const char *path, const void *bytes, size_t count, uint64_t offset);
spt_status spt_file_read_at(int fd, const char *path, void *bytes, size_t count, uint64_t offset);
/* Creates `path` for reading and writing, as a new file: what bears that name before, a link or a killed writer's
 * leftover, loses the name and is not written to. For `.part` files and the like. */
spt_status spt_file_create(const char *path, int *fd_p);
/* Opens what spt_file_create made, and nothing that was put in its place: no link. */
spt_status spt_file_reopen(const char *path, int *fd_p);
/* Reserves disk space for [0, bytes), so that a full disk shows now and not half way; where the file system cannot,
 * only sets the length and *reserved_p (may be NULL) is false. */
spt_status spt_file_reserve(int fd, const char *path, uint64_t bytes, bool *reserved_p);
/* Before a library writes that does not survive a full disk: reserves [0, bytes), or, where the file system cannot, writes
 * zeros over [0, first), where the library will write, and waits for them. */
spt_status spt_file_claim(int fd, const char *path, uint64_t bytes, uint64_t first);
/* fsync; network file systems tell of a full disk only here. */
spt_status spt_file_sync(int fd, const char *path);
/* Closes (*fd_p becomes −1; nothing when it is): some network file systems tell of a full disk or a quota only here. */
spt_status spt_file_close(int *fd_p, const char *path);
/* fsyncs the folder that holds `path`. */
spt_status spt_file_sync_folder(const char *path);
/* fsync, close (*fd_p becomes −1, also on failure), rename `part` to `path`, fsync the folder. `part` is removed on
 * failure. */
spt_status spt_file_publish(int *fd_p, const char *part, const char *path);
/* `path` holds these bytes, or, on failure, what it held before. */
spt_status spt_file_replace(const char *path, const void *bytes, size_t count);
/* `to` becomes a durable copy of `from`. */
spt_status spt_file_copy(const char *from, const char *to);
/* Renames it to the first free of `path`.kept-1, .kept-2, …, which goes to kept[size]. False, and kept "": it cannot be. */
bool spt_file_set_aside(const char *path, char *kept, size_t size);
/* The whole file, NUL-terminated and malloc'ed. */
spt_status spt_file_read_all(const char *path, char **bytes_p, size_t *count_p);

#endif
