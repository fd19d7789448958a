// What the CUDA half of the build finds at run time: devices, and whether a kernel image fits them.
#pragma once

#include <string>

namespace fastgen {
namespace cuda {

struct DeviceProbe {
  int runtime_version = 0;  // e.g. 13000
  int device_count = 0;
  int kernel_architecture = 0;  // e.g. 900: what the code that ran on device 0 was compiled for
  std::string error;            // empty, or the CUDA runtime's words
};

DeviceProbe probe_device();

}  // namespace cuda
}  // namespace fastgen
