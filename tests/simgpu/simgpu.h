/* The simulator's inside: fibers, blocks, device memory, streams. What a .cu file sees of it is device.cuh; what host code sees is the
 * CUDA runtime's own header, whose functions cudart.cpp defines. One process, one device, one operating-system thread that executes. */
#ifndef SIMGPU_H
#define SIMGPU_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace simgpu {

/* A fault of the program under test: says so on stderr and ends the process with this status. */
enum { FAULT_STATUS = 86 };
[[noreturn]] void fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Random numbers of this run; the seed is SIMGPU_SEED, or fresh, and is told with every fault. */
uint64_t random_below(uint64_t bound);

/* Devices of this node that the process sees: SIMGPU_DEVICES (8) from SIMGPU_FIRST_DEVICE (0) on, which their UUIDs tell apart. */
int device_count();

/* ---- memory.cpp: device memory ----
 * One range of addresses, apart from the host's: any access by host code faults, kernels and copies may touch live allocations only (the
 * address sanitizer checks each access). Memory is poisoned with NaN patterns when allocated and when freed. */
void *device_allocate(size_t bytes); /* 256-byte aligned; nullptr when the device is full */
void device_free(void *pointer);
bool is_device(const void *pointer);
/* Faults unless [pointer, pointer + bytes) lies in one live allocation. */
void check_device(const void *pointer, size_t bytes, const char *what);
size_t device_free_bytes();
size_t device_total_bytes();
/* Red zones inside an allocation, between the tensors of a slab: no kernel may touch them. */
void forbid(const void *pointer, size_t bytes);
void permit(const void *pointer, size_t bytes);
/* A red zone that cudaMemsetAsync and NCCL may pass over, as they take a slab of many tensors at once; all else as forbid. */
void forbid_gap(const void *pointer, size_t bytes);
/* While it lives, the gaps within [pointer, pointer + bytes) may be touched. */
struct spanning {
  spanning(const void *pointer, size_t bytes);
  ~spanning();
  spanning(const spanning &) = delete;
  spanning &operator=(const spanning &) = delete;

private:
  unsigned char *begin, *end;
};
/* Host memory that the device may copy asynchronously. */
void *pinned_allocate(size_t bytes);
void pinned_free(void *pointer);
bool is_pinned(const void *pointer, size_t bytes);
/* While one of these lives, device memory can be touched. */
struct device_access {
  device_access();
  ~device_access();
};

/* ---- block.cpp: kernels ---- */
struct extent {
  unsigned x, y, z;
};
struct launch {
  const char *name;
  extent grid, block;
  size_t dynamic_shared; /* bytes */
  std::function<void()> body; /* the kernel's function with its arguments */
};
void check_launch(const launch &l); /* limits of sm_80: faults */
void run(const launch &l);

/* ---- stream.cpp: streams and events ----
 * What is put on a stream is not executed before the host waits for something, and then in an order drawn at random among all that streams and
 * event waits allow. */
struct stream;
struct event;
stream *stream_create();
void stream_destroy(stream *s); /* what is on it is still executed */
void stream_push(stream *s, std::string what, std::function<void()> work);
/* Work that takes more than one look, such as communication: called until it is true. It must not wait by itself. */
void stream_push_polled(stream *s, std::string what, std::function<bool()> work);
event *event_create();
void event_destroy(event *e);
void event_record(event *e, stream *s);
void stream_wait(stream *s, event *e);
bool event_complete(const event *e); /* of the latest record; true when never recorded */
bool stream_empty(const stream *s);
void synchronize_event(event *e);
void synchronize_stream(stream *s);
void synchronize_device();
/* Executes a little, or nothing, as queries do. */
void drift();
/* For a host that waits for something else, as in MPI: the device goes on. On the thread that made the first stream, on others nothing. */
bool device_works_here();
void advance();

/* What was done so far: for counts of a step. At a normal exit written to the file SIMGPU_REPORT with ".RANK" behind it, a name and a number a
 * line; the rank is the launcher's, or 0. */
struct counters {
  int64_t launches, synchronizations, copies, copied_bytes, event_waits;
  int64_t collectives, collective_bytes; /* of NCCL: operations, and what one rank gave or got */
  int64_t host_copies, host_copied_bytes; /* of them between host and device */
  int64_t products, unaligned_products; /* of cuBLAS; those with an operand or a leading dimension off 16 bytes are slow on a GPU */
};
extern counters counted;
void report_at_exit();
int64_t launches_of(const char *kernel);

/* Counting only: what is launched, multiplied and copied is noted, not executed; device memory is addresses alone, so that models of any size fit.
 * Set before the first allocation. */
extern bool counting_only;
struct noted_launch {
  std::string kernel; /* empty: a product, C (m, n) with operands of `size` bytes and C of c_size, added to where `adds` */
  int m, n, k, batch, size, c_size;
  bool adds;
};
extern std::vector<noted_launch> noted;

} // namespace simgpu

#endif
