#include <cuda_runtime.h>

#include "cuda/device.h"

namespace fastgen {
namespace cuda {
namespace {

__global__ void report_architecture(int* out) {
#ifdef __CUDA_ARCH__
  *out = __CUDA_ARCH__;
#endif
}

cudaError_t run_on_device_0(int* architecture) {
  int* slot = nullptr;
  cudaError_t status = cudaMalloc(&slot, sizeof(int));
  if (status != cudaSuccess) return status;
  report_architecture<<<1, 1>>>(slot);
  status = cudaGetLastError();
  if (status == cudaSuccess) {
    status = cudaMemcpy(architecture, slot, sizeof(int), cudaMemcpyDeviceToHost);
  }
  cudaFree(slot);
  return status;
}

}  // namespace

DeviceProbe probe_device() {
  DeviceProbe probe;
  cudaRuntimeGetVersion(&probe.runtime_version);
  cudaError_t status = cudaGetDeviceCount(&probe.device_count);
  if (status == cudaSuccess && probe.device_count > 0) {
    status = run_on_device_0(&probe.kernel_architecture);
  }
  if (status != cudaSuccess) probe.error = cudaGetErrorString(status);
  return probe;
}

}  // namespace cuda
}  // namespace fastgen
