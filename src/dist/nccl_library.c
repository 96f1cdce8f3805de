#include "nccl_library.h"

#ifdef SPT_SIMGPU

spt_status spt_nccl_load(spt_nccl *nccl_p) {
#define MEMBER(member, function) function,
  *nccl_p = (spt_nccl){SPT_NCCL_TABLE(MEMBER)};
  return SPT_OK;
}

#else

#include <dlfcn.h>
#include <string.h>

static spt_status find(void *library, const char *name, void *function_p, size_t size) {
  void *symbol = dlsym(library, name);
  if (!symbol) return SPT_FAIL(SPT_ERR_RESOURCE, "NCCL has no %s: %s", name, dlerror());
  memcpy(function_p, &symbol, size);
  return SPT_OK;
}

spt_status spt_nccl_load(spt_nccl *nccl_p) {
  void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!library)
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: put NCCL's folder in LD_LIBRARY_PATH, start one rank, or use --backend cpu", dlerror());
#define MEMBER(member, function) SPT_TRY(find(library, #function, &nccl_p->member, sizeof nccl_p->member));
  SPT_NCCL_TABLE(MEMBER)
  return SPT_OK;
}

#endif
