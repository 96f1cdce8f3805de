#include "check_site.h"

#include "io/hdf5_util.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum {
  TAG_FILES = 81,
  TAG_SEEN = 82,
  TAG_STOP = 83,
  SYNCS_LEAST = 3,
  SYNCS_MOST = 100,
  WRITE_PIECE = 4 << 20,
  WRITE_MOST = 128 << 20,
  RENAMES = 200
};
#define SYNC_SECONDS 0.5
#define WRITE_SECONDS 3.0
#define RENAME_SECONDS 1.0
#define SEEN_SECONDS 3.0 /* network file systems cache what a folder holds */

typedef struct probe {
  const char *folder;
  char path[SITE_PATH_MAX + 128]; /* of the probe's own folder */
  int rank, self, count;          /* self: index among the leaders, −1: none of them */
  bool made_folder, made_probe;
  site_files *own;
} probe;

static void name_file(const probe *p, const char *name, int number, char path[SITE_PATH_MAX + 192]) {
  snprintf(path, SITE_PATH_MAX + 192, "%s/%s-%d", p->path, name, number);
}

static void note_error(probe *p, const char *what, const char *path) {
  if (!p->own->error[0]) snprintf(p->own->error, sizeof p->own->error, "%.150s: %s: %s", path, what, strerror(errno));
}

/* ---- the same folder on all nodes ---- */

static void make_folders(probe *p) {
  if (mkdir(p->folder, 0777) == 0)
    p->made_folder = true;
  else if (errno != EEXIST)
    note_error(p, "cannot be made", p->folder);
  if (mkdir(p->path, 0777) == 0)
    p->made_probe = true;
  else if (errno != EEXIST)
    note_error(p, "cannot be made", p->path);
}

static void write_token(probe *p, const char *path) {
  const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0 || write(fd, "spectron", 8) != 8 || fsync(fd) != 0) note_error(p, "cannot be written", path);
  if (fd >= 0 && close(fd) != 0) note_error(p, "cannot be closed", path);
}

static bool wait_for_token(const char *path, double until) {
  for (;;) {
    char text[9] = "";
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const bool seen = fd >= 0 && read(fd, text, 8) == 8 && strcmp(text, "spectron") == 0;
    if (fd >= 0) close(fd);
    if (seen || site_now() > until) return seen;
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
  }
}

/* The first leader writes, the others look and write, the first looks. */
static spt_status find_shared(probe *p, const int *leaders) {
  char path[SITE_PATH_MAX + 192];
  if (p->self == 0) {
    make_folders(p);
    name_file(p, "seen", 0, path);
    write_token(p, path);
    p->own->sees_first = p->own->first_sees = true;
  }
  SPT_TRY(site_quiet_barrier());
  if (p->self > 0) {
    name_file(p, "seen", 0, path);
    p->own->sees_first = wait_for_token(path, site_now() + SEEN_SECONDS);
    make_folders(p);
    name_file(p, "seen", p->self, path);
    write_token(p, path);
  }
  SPT_TRY(site_quiet_barrier());
  const double until = site_now() + SEEN_SECONDS;
  for (int i = 1; p->self == 0 && i < p->count; i++) {
    name_file(p, "seen", i, path);
    int seen = wait_for_token(path, until);
    SITE_MPI_TRY(MPI_Send, &seen, 1, MPI_INT, leaders[i], TAG_SEEN, MPI_COMM_WORLD);
  }
  if (p->self > 0) {
    int seen = 0;
    SITE_MPI_TRY(MPI_Recv, &seen, 1, MPI_INT, leaders[0], TAG_SEEN, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    p->own->first_sees = seen;
  }
  return SPT_OK;
}

/* ---- rates ---- */

static void measure_sync(probe *p) {
  char path[SITE_PATH_MAX + 192], page[4096] = "";
  double times[SYNCS_MOST];
  int count = 0;
  name_file(p, "sync", p->self, path);
  const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) {
    note_error(p, "cannot be made", path);
    return;
  }
  const double began = site_now();
  while (count < SYNCS_LEAST || (count < SYNCS_MOST && site_now() - began < SYNC_SECONDS)) {
    const double start = site_now();
    if (pwrite(fd, page, sizeof page, (off_t)count * (off_t)sizeof page) != (ssize_t)sizeof page || fsync(fd) != 0) {
      note_error(p, "write and fsync", path);
      break;
    }
    times[count++] = site_now() - start;
  }
  p->own->sync_seconds = site_median(times, count);
  if (close(fd) != 0) note_error(p, "close", path);
}

/* As a checkpoint is written: reserved, in pieces, fsync. */
static void measure_write(probe *p) {
  char path[SITE_PATH_MAX + 192];
  name_file(p, "write", 0, path);
  const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  char *piece = malloc(WRITE_PIECE);
  if (fd < 0 || !piece) {
    note_error(p, "cannot be made", path);
    free(piece);
    if (fd >= 0) close(fd);
    return;
  }
  // not posix_fallocate, which writes zeros where the file system cannot reserve
  p->own->reserves = fallocate(fd, 0, 0, WRITE_PIECE) == 0;
  memset(piece, 0x5a, WRITE_PIECE);
  int64_t written = 0;
  const double began = site_now();
  while (written < WRITE_MOST && site_now() - began < WRITE_SECONDS) {
    if (pwrite(fd, piece, WRITE_PIECE, written) != WRITE_PIECE) {
      note_error(p, "write", path);
      break;
    }
    written += WRITE_PIECE;
  }
  if (fsync(fd) != 0) note_error(p, "fsync", path);
  p->own->write_bytes = (double)written / (site_now() - began);
  if (close(fd) != 0) note_error(p, "close", path);
  free(piece);
  struct statvfs space;
  if (statvfs(p->path, &space) == 0) p->own->free_bytes = (double)space.f_bavail * (double)space.f_frsize;
}

/* ---- HDF5 ---- */

static bool hdf5_works(const char *path, bool locked) {
  spt_hdf5_quiet();
  unlink(path);
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  if (access < 0) return false;
  bool fine = H5Pset_file_locking(access, locked, !locked) >= 0;
  hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, access);
  int64_t value = 0;
  fine = fine && file >= 0 && spt_hdf5_put_int(file, path, "value", 42) == SPT_OK;
  if (file >= 0) fine = H5Fclose(file) >= 0 && fine;
  file = fine ? H5Fopen(path, H5F_ACC_RDONLY, access) : -1;
  fine = file >= 0 && spt_hdf5_get_int(file, path, "value", &value) == SPT_OK && value == 42;
  if (file >= 0) fine = H5Fclose(file) >= 0 && fine;
  H5Pclose(access);
  return fine;
}

/* ---- locks ---- */

static struct flock whole_file(short type) {
  return (struct flock){.l_type = type, .l_whence = SEEK_SET};
}

/* What one finds who asks for a lock that another holds: refused because it is held is how it should be. */
static site_lock answer(bool granted) {
  if (granted) return SITE_LOCK_NOT_SEEN;
  return errno == EWOULDBLOCK || errno == EACCES || errno == EAGAIN ? SITE_LOCK_WORKS : SITE_LOCK_REFUSED;
}

/* The first leader holds both locks; the others try. Alone, it tries itself through a second opening of the file, with
 * the kind of fcntl lock that tells openings apart. */
static spt_status try_locks(probe *p) {
  char path[SITE_PATH_MAX + 192];
  name_file(p, "lock", 0, path);
  const bool holds = p->self == 0, tries = p->self > 0 ? p->own->sees_first : p->self == 0 && p->count == 1;
  const bool alone = p->count == 1;
  int fd = -1, other = -1;
  site_files *own = p->own;
  if (p->self >= 0) own->flock = own->fcntl = SITE_LOCK_UNTRIED;
  if (holds) {
    struct flock lock = whole_file(F_WRLCK);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) note_error(p, "cannot be made", path);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0) own->flock = SITE_LOCK_REFUSED;
    if (fd >= 0 && fcntl(fd, alone ? F_OFD_SETLK : F_SETLK, &lock) != 0) own->fcntl = SITE_LOCK_REFUSED;
  }
  SPT_TRY(site_quiet_barrier());
  if (tries) {
    struct flock lock = whole_file(F_WRLCK);
    other = open(path, O_RDWR | O_CLOEXEC);
    if (other >= 0 && own->flock == SITE_LOCK_UNTRIED) own->flock = answer(flock(other, LOCK_EX | LOCK_NB) == 0);
    if (other >= 0 && own->fcntl == SITE_LOCK_UNTRIED)
      own->fcntl = answer(fcntl(other, alone ? F_OFD_SETLK : F_SETLK, &lock) == 0);
  }
  SPT_TRY(site_quiet_barrier());
  if (other >= 0) close(other);
  if (fd >= 0) close(fd);
  return SPT_OK;
}

/* ---- rename ---- */

enum { RENAMED_BYTES = 4096 };

static bool write_renamed(const char *part, const char *path, char letter) {
  char text[RENAMED_BYTES];
  memset(text, letter, sizeof text);
  const int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  const bool written = fd >= 0 && write(fd, text, sizeof text) == (ssize_t)sizeof text;
  return (fd < 0 || close(fd) == 0) && written && rename(part, path) == 0;
}

/* Whole, and of one letter. */
static bool looks_whole(const char *path) {
  char text[RENAMED_BYTES + 1];
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  const ssize_t bytes = fd >= 0 ? read(fd, text, sizeof text) : -1;
  if (fd >= 0) close(fd);
  for (ssize_t i = 1; i < bytes; i++)
    if (text[i] != text[0]) return false;
  return bytes == RENAMED_BYTES;
}

/* The first leader replaces a file again and again while `reader` (a rank; −1: nobody) looks at it. */
static spt_status try_renames(probe *p, int reader) {
  char path[SITE_PATH_MAX + 192], part[SITE_PATH_MAX + 192];
  int missed = 0;
  name_file(p, "renamed", 0, path);
  name_file(p, "part", 0, part);
  if (p->self == 0) p->own->renames = write_renamed(part, path, 'a');
  SPT_TRY(site_quiet_barrier());
  if (p->rank == reader) {
    for (int stop = 0; !stop;) {
      if (!looks_whole(path)) missed++;
      SITE_MPI_TRY(MPI_Iprobe, 0, TAG_STOP, MPI_COMM_WORLD, &stop, MPI_STATUS_IGNORE);
    }
    SITE_MPI_TRY(MPI_Recv, NULL, 0, MPI_BYTE, 0, TAG_STOP, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    SITE_MPI_TRY(MPI_Send, &missed, 1, MPI_INT, 0, TAG_STOP, MPI_COMM_WORLD);
  }
  if (p->self == 0) {
    const double began = site_now();
    for (int i = 0; i < RENAMES && site_now() - began < RENAME_SECONDS && p->own->renames; i++)
      p->own->renames = write_renamed(part, path, (char)('b' + i % 20));
    p->own->renames = p->own->renames && looks_whole(path) && access(part, F_OK) != 0;
    if (reader < 0) return SPT_OK;
    SITE_MPI_TRY(MPI_Send, NULL, 0, MPI_BYTE, reader, TAG_STOP, MPI_COMM_WORLD);
    SITE_MPI_TRY(MPI_Recv, &p->own->missed_renames, 1, MPI_INT, reader, TAG_STOP, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  }
  return SPT_OK;
}

/* A rank of another node that sees the folder, else another of this node. Collective. */
static spt_status choose_reader(const probe *p, const int *leaders, int *reader_p) {
  int size, mine = p->self > 0 && p->own->sees_first ? leaders[p->self] : -1;
  SITE_MPI_TRY(MPI_Comm_size, MPI_COMM_WORLD, &size);
  SITE_MPI_TRY(MPI_Allreduce, &mine, reader_p, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  if (*reader_p < 0 && size > 1 && p->count == 1) *reader_p = 1;
  return SPT_OK;
}

/* ---- all of it ---- */

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *where) {
  (void)info, (void)kind, (void)where;
  return remove(path);
}

static spt_status remove_probe(probe *p) {
  SPT_TRY(site_quiet_barrier()); // all have closed their files
  if (p->made_probe) nftw(p->path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
  if (p->made_folder && rmdir(p->folder) != 0) {
  } // not empty: another has put something there
  return SPT_OK;
}

static spt_status collect(const probe *p, const int *leaders, site_files *files) {
  if (p->self > 0) SITE_MPI_TRY(MPI_Send, p->own, (int)sizeof *p->own, MPI_BYTE, leaders[0], TAG_FILES, MPI_COMM_WORLD);
  if (p->self != 0) return SPT_OK;
  files[0] = *p->own;
  for (int i = 1; i < p->count; i++)
    SITE_MPI_TRY(MPI_Recv, &files[i], (int)sizeof files[i], MPI_BYTE, leaders[i], TAG_FILES, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
  return SPT_OK;
}

static spt_status measure(probe *p, const int *leaders) {
  char path[SITE_PATH_MAX + 192];
  int reader;
  SPT_TRY(find_shared(p, leaders));
  SPT_TRY(site_quiet_barrier());
  if (p->self >= 0 && !p->own->error[0]) measure_sync(p);
  SPT_TRY(site_quiet_barrier());
  if (p->self == 0 && !p->own->error[0]) {
    measure_write(p);
    name_file(p, "hdf5", 0, path);
    p->own->hdf5 = hdf5_works(path, false);
    p->own->hdf5_locked = hdf5_works(path, true);
  }
  SPT_TRY(try_locks(p));
  SPT_TRY(choose_reader(p, leaders, &reader));
  return try_renames(p, reader);
}

spt_status site_files_measure(const char *folder, const char *tag, const int *leaders, int count, site_files *files) {
  site_files own;
  memset(&own, 0, sizeof own);
  probe p = {.folder = folder, .self = -1, .count = count, .own = &own};
  SITE_MPI_TRY(MPI_Comm_rank, MPI_COMM_WORLD, &p.rank);
  for (int i = 0; i < count; i++)
    if (leaders[i] == p.rank) p.self = i;
  snprintf(p.path, sizeof p.path, "%s/.spectron-check-site-%s", folder, tag);
  SPT_TRY(measure(&p, leaders));
  SPT_TRY(remove_probe(&p));
  return collect(&p, leaders, files);
}
