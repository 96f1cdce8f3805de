/* How a .cu file declares and launches its kernels, so that nvcc compiles it for a GPU and a C++ compiler for the simulator (tests/simgpu). Kernels
 * are launched by spt_launch, not <<<>>>; shared memory is declared by these macros; intrinsics are those that tests/simgpu/device.cuh has. */
#ifndef SPT_LAUNCH_CUH
#define SPT_LAUNCH_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#ifdef SPT_SIMGPU
#include <simgpu/device.cuh>
#else

/* An array in shared memory: SPT_SHARED(float, tile, 32 * 33); contents are undefined until written. */
#define SPT_SHARED(type, name, count) __shared__ __align__(16) type name[count]
/* The launch's dynamic shared memory as an array. */
#define SPT_DYNAMIC_SHARED(type, name)                                                                                 \
  extern __shared__ __align__(16) unsigned char spt_dynamic_shared[];                                                 \
  type *name = reinterpret_cast<type *>(spt_dynamic_shared)

/* Launches kernel(args...) on a grid of blocks with `shared` bytes of dynamic shared memory. Returns the launch's error; what
 * happens while it runs shows at the next synchronisation. */
template <class... Parameters, class... Arguments>
static inline cudaError_t spt_launch_named(const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                                           cudaStream_t stream, Arguments... arguments) {
  (void)name;
  kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

#endif

/* spt_launch(kernel, grid, block, shared, stream, arguments...); a template's instance stands in parentheses. */
#define spt_launch(kernel, ...) spt_launch_named(#kernel, kernel, __VA_ARGS__)

#endif
