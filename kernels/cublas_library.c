#include "cublas_library.h"

#ifdef SPT_SIMGPU

spt_status spt_cublas_load(spt_cublas *cublas_p) {
#define MEMBER(member, function) function,
  *cublas_p = (spt_cublas){SPT_CUBLAS_TABLE(MEMBER)};
  return SPT_OK;
}

#else

#include <dlfcn.h>
#include <string.h>

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)

static spt_status find(void *library, const char *name, void *function_p, size_t size) {
  void *symbol = dlsym(library, name);
  if (!symbol) return SPT_FAIL(SPT_ERR_RESOURCE, "cuBLAS has no %s: %s", name, dlerror());
  memcpy(function_p, &symbol, size);
  return SPT_OK;
}

spt_status spt_cublas_load(spt_cublas *cublas_p) {
  const char *name = "libcublas.so." TEXT(CUBLAS_VER_MAJOR);
  void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!library) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: put the folder of CUDA's libraries in LD_LIBRARY_PATH, or use --backend cpu", dlerror());
#define MEMBER(member, function) SPT_TRY(find(library, #function, &cublas_p->member, sizeof cublas_p->member));
  SPT_CUBLAS_TABLE(MEMBER)
  return SPT_OK;
}

#endif
