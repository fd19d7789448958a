// reparam_kl's CPU kernels: z = mu + exp(l / 2) eps and the divergence of N(mu, exp(l)) from the
// prior N(m, exp(p)), summed over each row, and their gradients.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/isa.h"

namespace fastgen {

enum class Parametrization : int64_t { kLogvar, kLogstd, kSoftplus };

// The columns that one sum in float32 covers; sums of pieces are added in float64, in order.
constexpr int64_t kReparamPiece = 4096;
// The samples of one row of the prior whose gradients one sum in float32 covers.
constexpr int64_t kReparamChunk = 64;

// Samples order[begin .. end), all of prior row `row`; their sum goes to the gradient itself, or to
// the partial sums.
struct PriorChunk {
  int64_t row, begin, end;
  double* partial;  // [2, columns], or null
};

// Matrices of adjacent columns; steps are elements from a row to the next. T is S's arithmetic.
template <class S, class T>
struct ReparamKlArgs {
  int64_t rows, columns, samples;
  Parametrization parametrization;
  double clamp_low, clamp_high;  // infinite where there is none
  double free_bits;
  const S *mu, *logvar;  // [rows, columns]
  int64_t mu_step, logvar_step;
  const S *prior_mu, *prior_logvar;  // null, or as many rows as there are ...
  int64_t prior_mu_step, prior_logvar_step;
  const int64_t* prior_index;  // ... the row of each sample, or null: its own, or with step 0 one
  const S* eps;                // [samples, rows, columns], or null: made from the seed
  uint64_t seed;

  S* z;          // [samples, rows, columns]
  T* kl;         // [rows], if a row is one piece, ...
  double* sums;  // ... else [rows, pieces]

  const S *grad_z, *from_z;  // [samples, rows, columns], or null; from_z: z to take eps from
  const T* grad_kl;          // [rows] or null
  int64_t grad_z_step, grad_kl_step;
  S *grad_mu, *grad_logvar;  // [rows, columns], or null

  const int64_t* order;  // samples by their row of the prior, or null: as they are
  const PriorChunk* chunks;
  const int64_t* first_chunk;            // [prior rows + 1]: of each row
  S *grad_prior_mu, *grad_prior_logvar;  // [prior rows, columns], or null
};

struct ReparamKlKernels {
  template <class S, class T>
  struct PerType {
    using Range = void (*)(const ReparamKlArgs<S, T>&, int64_t begin, int64_t end);
    Range forward, backward;  // of units (row, piece), pieces first
    Range prior, prior_sums;  // of chunks; then of rows of the prior
  };
  PerType<float, float> float32;
  PerType<double, double> float64;
  PerType<BFloat16, float> bfloat16;
  PerType<Float16, float> float16;
};

FASTGEN_DECLARE_KERNELS(ReparamKlKernels, reparam_kl)

}  // namespace fastgen
