/* The subset of NCCL that the product calls, over MPI. Operations stand in their stream's queue; in their turn the ranks first tell each other what
 * they want, which must be the same, then data moves. Nothing waits here: an operation is looked at again until it is done, so that a rank's other
 * streams and its host go on as they do on GPUs. While it is under way its outputs are NaN. */
#include "simgpu.h"

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <mpi.h>
#include <nccl.h>
#include <random>
#include <vector>

using namespace simgpu;

namespace {

enum kind : int32_t { ALL_REDUCE, REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST };
const char *const kind_names[] = {"all-reduce", "reduce", "reduce-scatter", "all-gather", "broadcast"};

/* What is compared between ranks. */
struct operation {
  int32_t what, type, op, root; // root -1, op -1: none
  int64_t count;
};
enum { GROUP_MAX = 32 }; // operations of a group
struct wish {
  uint64_t number; // of the communicator's calls
  int32_t count, rank;
  operation list[GROUP_MAX];
};

struct part {
  operation what;
  const void *from;
  void *to;
  std::vector<unsigned char> send, receive;
};
double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}
double patience() {
  const char *given = getenv("SIMGPU_NCCL_SECONDS");
  return given ? atof(given) : 120;
}
void must(int code, const char *call) {
  if (code != MPI_SUCCESS) fault("%s failed", call);
}
#define MUST(call, ...) must(call(__VA_ARGS__), #call)

size_t size_of(int32_t type) {
  switch (type) {
  case ncclInt8:
  case ncclUint8: return 1;
  case ncclBfloat16: return 2;
  case ncclInt32:
  case ncclFloat32: return 4;
  case ncclInt64:
  case ncclFloat64: return 8;
  default: fault("NCCL: data type %d is not simulated", (int)type);
  }
}
const char *name_of_type(int32_t type) {
  switch (type) {
  case ncclFloat32: return "fp32";
  case ncclFloat64: return "fp64";
  case ncclBfloat16: return "bf16";
  default: return "integers";
  }
}
MPI_Datatype reduced_type(int32_t type) {
  if (type == ncclFloat32) return MPI_FLOAT;
  if (type == ncclFloat64) return MPI_DOUBLE;
  fault("NCCL: reductions of data type %d are not simulated", (int)type);
}
MPI_Op reduction(int32_t op) {
  if (op == ncclSum) return MPI_SUM;
  if (op == ncclMax) return MPI_MAX;
  if (op == ncclMin) return MPI_MIN;
  fault("NCCL: reduction %d is not simulated", (int)op);
}
std::string words_of(const operation &o) {
  char text[160];
  const char *const op = o.op < 0 ? "" : o.op == ncclSum ? ", sum" : o.op == ncclMax ? ", max" : ", another reduction";
  char root[32] = "";
  if (o.root >= 0) snprintf(root, sizeof root, ", root %d", (int)o.root);
  snprintf(text, sizeof text, "%s of %lld %s%s%s", kind_names[o.what], (long long)o.count, name_of_type(o.type), op, root);
  return text;
}

struct call;
} // namespace

struct ncclComm {
  MPI_Comm mpi;
  int rank, size;
  uint64_t issued, done;
  bool aborted;
  ncclResult_t state;
  cudaStream_t stream; // of all its operations
};

namespace {

/* One entry of the queue: an operation, or a group. */
struct call {
  ncclComm *comm;
  wish own;
  std::vector<part> parts;
  enum { NEW, ASKED, MOVING } state = NEW;
  double began = 0;
  std::vector<wish> theirs;
  std::vector<MPI_Request> asked, told, moving;

  bool poll();

private:
  void ask();
  bool heard();
  void start(part &p);
  void finish(part &p);
};

struct open_group {
  int depth = 0;
  std::vector<std::pair<std::shared_ptr<call>, cudaStream_t>> calls;
} group;

bool fails(uint64_t number) { // planted: the network breaks at this operation
  const char *given = getenv("SIMGPU_NCCL_FAIL_AT");
  return given && strtoull(given, nullptr, 10) == number;
}

void call::ask() {
  const int tag = (int)(own.number % 30000);
  theirs.resize((size_t)comm->size);
  asked.assign((size_t)comm->size, MPI_REQUEST_NULL);
  told.assign((size_t)comm->size, MPI_REQUEST_NULL);
  for (int p = 0; p < comm->size; p++) {
    if (p == comm->rank) continue;
    MUST(PMPI_Irecv, &theirs[(size_t)p], sizeof(wish), MPI_BYTE, p, tag, comm->mpi, &asked[(size_t)p]);
    MUST(PMPI_Isend, &own, sizeof own, MPI_BYTE, p, tag, comm->mpi, &told[(size_t)p]);
  }
  began = now();
}

/* All have said what they want, and it is the same. */
bool call::heard() {
  std::string missing;
  for (int p = 0; p < comm->size; p++) {
    int flag = 1;
    MUST(PMPI_Test, &asked[(size_t)p], &flag, MPI_STATUS_IGNORE);
    if (!flag) missing += " " + std::to_string(p);
  }
  if (!missing.empty()) {
    if (now() - began > patience())
      fault("NCCL call %llu, %s: rank %d waits, but rank%s did not come to it in %g s", (unsigned long long)own.number,
            words_of(own.list[0]).c_str(), comm->rank, missing.c_str(), patience());
    return false;
  }
  for (int p = 0; p < comm->size; p++) {
    if (p == comm->rank) continue;
    const wish &other = theirs[(size_t)p];
    if (other.count != own.count)
      fault("NCCL call %llu differs: rank %d has a group of %d operations, rank %d of %d", (unsigned long long)own.number, comm->rank, own.count,
            p, other.count);
    for (int i = 0; i < own.count; i++)
      if (memcmp(&other.list[i], &own.list[i], sizeof own.list[i]) != 0)
        fault("NCCL call %llu differs: rank %d wants %s, rank %d wants %s", (unsigned long long)own.number, comm->rank,
              words_of(own.list[i]).c_str(), p, words_of(other.list[i]).c_str());
  }
  return true;
}

/* Bytes that an operation reads and writes on this rank; 0: nothing. */
void extents(const operation &o, int rank, int size, size_t *read_p, size_t *write_p) {
  const size_t bytes = (size_t)o.count * size_of(o.type), all = bytes * (size_t)size;
  *read_p = o.what == REDUCE_SCATTER ? all : o.what == BROADCAST && rank != o.root ? 0 : bytes;
  *write_p = o.what == ALL_GATHER ? all : o.what == REDUCE && rank != o.root ? 0 : bytes;
}

void call::start(part &p) {
  const operation &o = p.what;
  size_t read, write;
  extents(o, comm->rank, comm->size, &read, &write);
  p.send.resize(read ? read : 1);
  p.receive.resize(std::max(write, (size_t)1));
  {
    const spanning source(p.from, read), target(p.to, write);
    if (read) memcpy(p.send.data(), p.from, read);
    if (write) memset(p.to, 0xff, write); // under way: NaN
  }
  const int count = (int)o.count, bytes = (int)((size_t)o.count * size_of(o.type));
  MPI_Request request = MPI_REQUEST_NULL;
  void *const in = p.send.data(), *const out = p.receive.data();
  switch (o.what) {
  case ALL_REDUCE: MUST(PMPI_Iallreduce, in, out, count, reduced_type(o.type), reduction(o.op), comm->mpi, &request); break;
  case REDUCE: MUST(PMPI_Ireduce, in, out, count, reduced_type(o.type), reduction(o.op), o.root, comm->mpi, &request); break;
  case REDUCE_SCATTER: MUST(PMPI_Ireduce_scatter_block, in, out, count, reduced_type(o.type), reduction(o.op), comm->mpi, &request); break;
  case ALL_GATHER: MUST(PMPI_Iallgather, in, bytes, MPI_BYTE, out, bytes, MPI_BYTE, comm->mpi, &request); break;
  default:
    if (comm->rank == o.root) memcpy(out, in, read);
    MUST(PMPI_Ibcast, out, bytes, MPI_BYTE, o.root, comm->mpi, &request);
  }
  moving.push_back(request);
  counted.collectives++;
  counted.collective_bytes += (int64_t)std::max(read, write);
}

void call::finish(part &p) {
  size_t read, write;
  extents(p.what, comm->rank, comm->size, &read, &write);
  const spanning target(p.to, write);
  if (write) memcpy(p.to, p.receive.data(), write);
}

bool call::poll() {
  if (comm->aborted) return true;
  if (state == NEW) {
    if (fails(own.number)) comm->state = ncclRemoteError;
    if (comm->state != ncclSuccess) return false; // for ever, as a kernel that waits for a broken peer
    ask();
    state = ASKED;
  }
  if (state == ASKED) {
    if (!heard()) return false;
    for (part &p : parts) start(p);
    state = MOVING;
  }
  int moved = 0, sent = 0;
  MUST(PMPI_Testall, (int)moving.size(), moving.data(), &moved, MPI_STATUSES_IGNORE);
  MUST(PMPI_Testall, (int)told.size(), told.data(), &sent, MPI_STATUSES_IGNORE);
  if (!moved || !sent) return false;
  for (part &p : parts) finish(p);
  comm->done++;
  return true;
}

void issue(const std::shared_ptr<call> &c, cudaStream_t s) {
  c->own.number = c->comm->issued++;
  c->own.rank = c->comm->rank;
  c->own.count = (int32_t)c->parts.size();
  for (size_t i = 0; i < c->parts.size(); i++) c->own.list[i] = c->parts[i].what;
  stream_push_polled(reinterpret_cast<stream *>(s), "NCCL " + words_of(c->own.list[0]), [c] { return c->poll(); });
}

ncclResult_t put(const char *name, ncclComm *comm, cudaStream_t s, const operation &o, const void *from, void *to) {
  if (!comm) fault("%s without a communicator", name);
  if (s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread) fault("%s on the default stream: use a stream of your own", name);
  if (comm->stream && comm->stream != s) fault("%s: the simulator takes one stream a communicator", name);
  comm->stream = s;
  if (comm->aborted) return ncclInvalidUsage;
  if (o.root >= comm->size) return ncclInvalidArgument;
  size_t read, write;
  extents(o, comm->rank, comm->size, &read, &write);
  if (std::max(read, write) > INT_MAX) fault("%s: more than 2 GiB at once are not simulated", name);
  {
    const spanning source(from, read), target(to, write);
    check_device(read ? from : nullptr, read, name);
    check_device(write ? to : nullptr, write, name);
  }
  if (o.count == 0) return ncclSuccess;
  if (group.depth == 0) {
    auto c = std::make_shared<call>();
    c->comm = comm;
    c->parts.push_back({o, from, to, {}, {}});
    issue(c, s);
    return ncclSuccess;
  }
  for (auto &open : group.calls)
    if (open.first->comm == comm && open.second == s && open.first->parts.size() < GROUP_MAX) {
      open.first->parts.push_back({o, from, to, {}, {}});
      return ncclSuccess;
    }
  auto c = std::make_shared<call>();
  c->comm = comm;
  c->parts.push_back({o, from, to, {}, {}});
  group.calls.emplace_back(c, s);
  return ncclSuccess;
}

} // namespace

extern "C" {

const char *ncclGetErrorString(ncclResult_t result) {
  switch (result) {
  case ncclSuccess: return "no error";
  case ncclInvalidArgument: return "invalid argument";
  case ncclInvalidUsage: return "invalid usage";
  case ncclRemoteError: return "remote process exited or there was a network error";
  default: return "unknown result code";
  }
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  std::random_device source;
  for (char &byte : id->internal) byte = (char)source();
  return ncclSuccess;
}

/* All ranks of the program, as its MPI numbers them. */
ncclResult_t ncclCommInitRank(ncclComm_t *comm_p, int size, ncclUniqueId id, int rank) {
  int world_size, world_rank;
  MUST(PMPI_Comm_size, MPI_COMM_WORLD, &world_size);
  MUST(PMPI_Comm_rank, MPI_COMM_WORLD, &world_rank);
  if (size != world_size || rank != world_rank) fault("ncclCommInitRank: rank %d of %d is %d of %d in MPI", rank, size, world_rank, world_size);
  auto *comm = new ncclComm{MPI_COMM_NULL, rank, size, 0, 0, false, ncclSuccess, nullptr};
  MPI_Request request;
  MUST(PMPI_Comm_idup, MPI_COMM_WORLD, &comm->mpi, &request);
  std::vector<char> first(sizeof id);
  memcpy(first.data(), &id, sizeof id);
  const double began = now();
  for (int phase = 0; phase < 2; phase++) {
    for (int done = 0; !done;) {
      MUST(PMPI_Test, &request, &done, MPI_STATUS_IGNORE);
      if (!done) advance();
      if (!done && now() - began > patience()) fault("ncclCommInitRank: not all of the %d ranks came in %g s", size, patience());
    }
    if (phase == 0) MUST(PMPI_Ibcast, first.data(), (int)first.size(), MPI_BYTE, 0, comm->mpi, &request);
  }
  if (memcmp(first.data(), &id, sizeof id) != 0) fault("ncclCommInitRank: rank %d has another unique id than rank 0", rank);
  *comm_p = comm;
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state_p) {
  *state_p = comm->state;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->aborted = true; // and stays, for what is still in queues
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (comm->stream) synchronize_stream(reinterpret_cast<stream *>(comm->stream));
  MUST(PMPI_Comm_free, &comm->mpi);
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart(void) {
  group.depth++;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd(void) {
  if (group.depth == 0) fault("ncclGroupEnd without ncclGroupStart");
  if (--group.depth > 0) return ncclSuccess;
  for (auto &open : group.calls) issue(open.first, open.second);
  group.calls.clear();
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm, cudaStream_t s) {
  return put("ncclAllReduce", comm, s, {ALL_REDUCE, type, op, -1, (int64_t)count}, from, to);
}
ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t s) {
  return put("ncclReduce", comm, s, {REDUCE, type, op, root, (int64_t)count}, from, to);
}
ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm, cudaStream_t s) {
  return put("ncclReduceScatter", comm, s, {REDUCE_SCATTER, type, op, -1, (int64_t)count}, from, to);
}
ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t s) {
  return put("ncclAllGather", comm, s, {ALL_GATHER, type, -1, -1, (int64_t)count}, from, to);
}
ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t comm, cudaStream_t s) {
  return put("ncclBroadcast", comm, s, {BROADCAST, type, -1, root, (int64_t)count}, from, to);
}
}
