// philox_uniform's CPU kernels: uniform numbers in [0, 1), each a function of (seed, its index).
#pragma once

#include "common/isa.h"
#include "philox_fill.h"

namespace fastgen {

FASTGEN_DECLARE_KERNELS(PhiloxFillKernels, philox_uniform)

}  // namespace fastgen
