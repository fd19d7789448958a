// The Python module fastgen._C. pybind11 binds what is not a tensor op: the CPU level, the build,
// the measured ceilings. Tensor ops reach Python through torch's dispatcher, which gives them
// autograd, torch.compile and device dispatch; importing this module registers them. No torch
// headers here: they and pybind11's are each expensive to compile.
#include <pybind11/pybind11.h>

#include "clip_binding.h"
#include "common/isa.h"
#include "cuda/device.h"
#include "engine_bindings.h"
#include "fma_peak.h"
#include "memory_pass.h"

namespace py = pybind11;
using namespace fastgen;

namespace {

py::list supported_levels() {
  py::list names;
  for (Isa level : {Isa::kDefault, Isa::kAvx2, Isa::kAvx512}) {
    if (isa_supported(level)) names.append(isa_name(level));
  }
  return names;
}

py::object cuda_build() {
#ifdef FASTGEN_WITH_CUDA
  const cuda::DeviceProbe probe = cuda::probe_device();
  py::dict info;
  info["runtime"] = probe.runtime_version;
  info["architectures"] = FASTGEN_CUDA_ARCHITECTURES;
  info["devices"] = probe.device_count;
  info["kernel_architecture"] = probe.kernel_architecture;
  info["error"] = probe.error;
  return std::move(info);
#else
  return py::none();
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastgen's compiled kernels; see fastgen.backends and `fastgen info`.";
  m.def(
      "isa", [] { return isa_name(active_isa()); },
      "CPU level in force; RuntimeError if forced badly");
  m.def("supported_isa_levels", &supported_levels);
  m.def("multiplies_bfloat16", &multiplies_bfloat16);
  m.def("compiler", [] { return __VERSION__; });
  m.def("cuda_build", &cuda_build, "None, or what the CUDA half was built for and finds");
  m.def(
      "fma_flops", [](int64_t iterations) { return FASTGEN_KERNELS(fma_peak).run(iterations); },
      py::call_guard<py::gil_scoped_release>(), py::arg("iterations"),
      "Runs register-only float32 FMAs at the level in force; returns the FLOPs done.");
  m.def(
      "memory_pass",
      [](uintptr_t weights, uintptr_t grads, uintptr_t averages, int64_t count) {
        FASTGEN_KERNELS(memory_pass)
            .run(reinterpret_cast<float*>(weights), reinterpret_cast<const float*>(grads),
                 reinterpret_cast<float*>(averages), count);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("weights"), py::arg("grads"),
      py::arg("averages"), py::arg("count"),
      "One pass over float32 arrays at these addresses, the first and last written back.");
  bind_clip(m);
  bind_engine(m);
}
