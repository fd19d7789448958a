// philox_normal's CPU kernels: standard normal numbers, each a function of (seed, its index).
#pragma once

#include "common/isa.h"
#include "philox_fill.h"

namespace fastgen {

FASTGEN_DECLARE_KERNELS(PhiloxFillKernels, philox_normal)

}  // namespace fastgen
