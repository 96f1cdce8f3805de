/* NCCL, loaded when ranks on GPUs first need it, so that the program starts without it. The simulator's is linked in. */
#ifndef SPT_NCCL_LIBRARY_H
#define SPT_NCCL_LIBRARY_H

#include "core/status.h"

#include <nccl.h>

#define SPT_NCCL_TABLE(X)                                            \
  X(get_unique_id, ncclGetUniqueId)                                  \
  X(init_rank, ncclCommInitRank)                                     \
  X(destroy, ncclCommDestroy)                                        \
  X(abort, ncclCommAbort)                                            \
  X(async_error, ncclCommGetAsyncError)                              \
  X(error_string, ncclGetErrorString)                                \
  X(group_start, ncclGroupStart)                                     \
  X(group_end, ncclGroupEnd)                                         \
  X(all_reduce, ncclAllReduce)                                       \
  X(reduce, ncclReduce)                                              \
  X(broadcast, ncclBroadcast)

typedef struct spt_nccl {
#define SPT_NCCL_MEMBER(member, function) __typeof__(function) *member;
  SPT_NCCL_TABLE(SPT_NCCL_MEMBER)
#undef SPT_NCCL_MEMBER
} spt_nccl;

/* SPT_ERR_RESOURCE: the library is not there, or too old. It stays loaded. */
spt_status spt_nccl_load(spt_nccl *nccl_p);

#endif
