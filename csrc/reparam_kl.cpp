#include "reparam_kl.h"

#include <ATen/Parallel.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "own_seed.h"

namespace fastgen {
namespace {

using at::Tensor;

constexpr const char* kOp = "reparam_kl";
// Elements a thread should have: below this the other threads cost more than they bring.
constexpr int64_t kGrain = 8192;

// A tensor (rows, ...) as a matrix of adjacent columns at any distance between rows; copied only if
// its columns are not adjacent.
struct Matrix {
  Tensor tensor;
  int64_t step = 0;

  Matrix() = default;
  explicit Matrix(const Tensor& t) : tensor(adjacent(t) ? t : t.contiguous()) {
    step = tensor.stride(0);
  }
  // Of optional arguments.
  explicit Matrix(const std::optional<Tensor>& t) {
    if (t.has_value()) *this = Matrix(*t);
  }

  template <class S>
  const S* data() const {
    return tensor.defined() ? static_cast<const S*>(tensor.const_data_ptr()) : nullptr;
  }

 private:
  static bool adjacent(const Tensor& t) {
    int64_t expected = 1;
    for (int64_t d = t.dim() - 1; d > 0; --d) {
      if (t.size(d) != 1 && t.stride(d) != expected) return false;
      expected *= t.size(d);
    }
    return true;
  }
};

// A result in the memory format that `like` suggests; kernels write rows of adjacent columns.
struct Result {
  Tensor tensor, written;

  explicit Result(const Tensor& like, bool wanted = true) {
    if (!wanted) {
      tensor = at::empty({0}, like.options());
      return;
    }
    tensor = at::empty(like.sizes(), like.options(), like.suggest_memory_format());
    written = tensor.is_contiguous() ? tensor : at::empty(like.sizes(), like.options());
  }

  template <class S>
  S* data() const {
    return written.defined() ? static_cast<S*>(written.mutable_data_ptr()) : nullptr;
  }

  Tensor finished() const {
    if (written.defined() && !written.is_same(tensor)) tensor.copy_(written);
    return tensor;
  }
};

struct Settings {
  int64_t samples;
  std::optional<double> clamp_low, clamp_high;
  double free_bits;
  int64_t parametrization;
};

struct Inputs {
  Matrix mu, logvar, prior_mu, prior_logvar;
  Tensor prior_index, eps;
  int64_t rows, columns, prior_rows = 0;

  Inputs(const Tensor& mu_in, const Tensor& logvar_in, const std::optional<Tensor>& prior_mu_in,
         const std::optional<Tensor>& prior_logvar_in, const std::optional<Tensor>& index,
         const std::optional<Tensor>& eps_in, int64_t samples)
      : rows(check(mu_in, logvar_in)), columns(rows == 0 ? 0 : mu_in.numel() / rows) {
    mu = Matrix(mu_in);
    logvar = Matrix(logvar_in);
    if (prior_mu_in.has_value()) {
      check_prior(mu_in, *prior_mu_in, prior_logvar_in);
      prior_mu = Matrix(*prior_mu_in);
      prior_logvar = Matrix(*prior_logvar_in);
      prior_rows = prior_mu_in->size(0);
      if (index.has_value()) {
        take_index(*index);
      } else {
        TORCH_CHECK_VALUE(prior_rows == 1 || prior_rows == rows, "fastgen.", kOp,
                          ": prior_mu must have 1 or ", rows, " rows, got ", prior_rows,
                          "; pass prior_index");
        if (prior_rows == 1) prior_mu.step = prior_logvar.step = 0;
      }
    }
    if (eps_in.has_value()) {
      TORCH_CHECK_VALUE(eps_in->numel() == samples * mu_in.numel() &&
                            eps_in->scalar_type() == mu_in.scalar_type(),
                        "fastgen.", kOp, ": eps must be like z, got ", eps_in->scalar_type(), " ",
                        eps_in->sizes(), "; or pass a seed");
      eps = eps_in->contiguous();
    }
  }

  template <class S, class T>
  ReparamKlArgs<S, T> arguments(const Settings& settings, uint64_t seed) const {
    ReparamKlArgs<S, T> args{};
    args.rows = rows;
    args.columns = columns;
    args.samples = settings.samples;
    args.parametrization = static_cast<Parametrization>(settings.parametrization);
    args.clamp_low = settings.clamp_low.value_or(-INFINITY);
    args.clamp_high = settings.clamp_high.value_or(INFINITY);
    args.free_bits = settings.free_bits;
    args.mu = mu.data<S>();
    args.logvar = logvar.data<S>();
    args.mu_step = mu.step;
    args.logvar_step = logvar.step;
    args.prior_mu = prior_mu.data<S>();
    args.prior_logvar = prior_logvar.data<S>();
    args.prior_mu_step = prior_mu.step;
    args.prior_logvar_step = prior_logvar.step;
    if (prior_index.defined()) args.prior_index = prior_index.const_data_ptr<int64_t>();
    if (eps.defined()) args.eps = static_cast<const S*>(eps.const_data_ptr());
    args.seed = seed;
    return args;
  }

 private:
  static int64_t check(const Tensor& mu, const Tensor& logvar) {
    TORCH_CHECK_VALUE(mu.dim() > 0 && mu.sizes() == logvar.sizes(), "fastgen.", kOp,
                      ": logvar must be mu's shape ", mu.sizes(), ", got ", logvar.sizes());
    TORCH_CHECK_TYPE(mu.scalar_type() == logvar.scalar_type(), "fastgen.", kOp,
                     ": logvar must have mu's dtype ", mu.scalar_type(), ", got ",
                     logvar.scalar_type());
    return mu.size(0);
  }

  static void check_prior(const Tensor& mu, const Tensor& prior_mu,
                          const std::optional<Tensor>& prior_logvar) {
    TORCH_CHECK_VALUE(prior_logvar.has_value() && prior_mu.sizes() == prior_logvar->sizes() &&
                          prior_mu.dim() == mu.dim() &&
                          prior_mu.sizes().slice(1) == mu.sizes().slice(1),
                      "fastgen.", kOp, ": prior_mu and prior_logvar must be (rows, ...) like mu ",
                      mu.sizes(), ", got ", prior_mu.sizes());
    TORCH_CHECK_TYPE(prior_mu.scalar_type() == mu.scalar_type() &&
                         prior_logvar->scalar_type() == mu.scalar_type(),
                     "fastgen.", kOp, ": prior_mu and prior_logvar must have mu's dtype ",
                     mu.scalar_type(), ", got ", prior_mu.scalar_type());
  }

  void take_index(const Tensor& index) {
    TORCH_CHECK_VALUE(index.scalar_type() == at::kLong && index.dim() == 1 && index.size(0) == rows,
                      "fastgen.", kOp, ": prior_index must be int64 (", rows, "), got ",
                      index.scalar_type(), " ", index.sizes());
    prior_index = index.contiguous();
    const int64_t* labels = prior_index.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < rows; ++i) {
      TORCH_CHECK_VALUE(labels[i] >= 0 && labels[i] < prior_rows, "fastgen.", kOp,
                        ": prior_index must lie in 0 .. ", prior_rows - 1,
                        ", the rows of prior_mu, got ", labels[i], "; check the labels");
    }
  }
};

// Calls f with the kernels of x's dtype and null pointers of its storage and arithmetic types.
template <class F>
void dispatch(const Tensor& x, F f) {
  const ReparamKlKernels& kernels = FASTGEN_KERNELS(reparam_kl);
  float* const narrow = nullptr;
  double* const wide = nullptr;
  switch (x.scalar_type()) {
    case at::kFloat:
      return f(kernels.float32, narrow, narrow);
    case at::kDouble:
      return f(kernels.float64, wide, wide);
    case at::kBFloat16:
      return f(kernels.bfloat16, static_cast<BFloat16*>(nullptr), narrow);
    case at::kHalf:
      return f(kernels.float16, static_cast<Float16*>(nullptr), narrow);
    default:
      TORCH_CHECK_TYPE(false, "fastgen.", kOp, ": mu must be floating point, got ",
                       x.scalar_type());
  }
}

template <class Kernel, class Args>
void run(Kernel kernel, const Args& args, int64_t units, int64_t length) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, length));
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

at::ScalarType accumulation(const Tensor& mu) {
  return mu.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

std::tuple<Tensor, Tensor, Tensor> reparam_kl(
    const Tensor& mu, const Tensor& logvar, const std::optional<Tensor>& prior_mu,
    const std::optional<Tensor>& prior_logvar, const std::optional<Tensor>& prior_index,
    const std::optional<Tensor>& eps, const std::optional<Tensor>& seed, int64_t samples,
    std::optional<double> clamp_low, std::optional<double> clamp_high, double free_bits,
    int64_t parametrization) {
  const Inputs in(mu, logvar, prior_mu, prior_logvar, prior_index, eps, samples);
  // noise that was given draws nothing from the generator
  const Tensor used_seed = eps.has_value() ? seed_of(0) : seed_or_draw(kOp, seed);
  Tensor kl = at::empty({in.rows}, mu.options().dtype(accumulation(mu)));
  std::optional<Result> z;
  Tensor draws;
  if (samples == 1) {
    z.emplace(mu);
    draws = z->written;
  } else {
    c10::SmallVector<int64_t, 5> sizes{samples};
    sizes.append(mu.sizes().begin(), mu.sizes().end());
    draws = at::empty(sizes, mu.options());
  }
  const int64_t pieces = std::max<int64_t>(1, (in.columns + kReparamPiece - 1) / kReparamPiece);
  if (in.rows > 0) {
    dispatch(mu, [&](const auto& kernels, auto* storage, auto* arithmetic) {
      using S = std::remove_pointer_t<decltype(storage)>;
      using T = std::remove_pointer_t<decltype(arithmetic)>;
      auto args = in.arguments<S, T>({samples, clamp_low, clamp_high, free_bits, parametrization},
                                     seed_value(kOp, used_seed));
      args.z = static_cast<S*>(draws.mutable_data_ptr());
      args.kl = static_cast<T*>(kl.mutable_data_ptr());
      std::vector<double> sums(pieces > 1 ? in.rows * pieces : 0);
      if (pieces > 1) args.sums = sums.data();
      run(kernels.forward, args, in.rows * pieces, samples * std::min(in.columns, kReparamPiece));
      for (int64_t row = 0; pieces > 1 && row < in.rows; ++row) {
        double total = 0;
        for (int64_t i = 0; i < pieces; ++i) total += sums[row * pieces + i];
        args.kl[row] = static_cast<T>(total);
      }
    });
  }
  return {samples == 1 ? z->finished() : draws, kl, used_seed};
}

// The samples of each row of the prior, in chunks.
struct PriorPlan {
  std::vector<int64_t> order, first_chunk;
  std::vector<PriorChunk> chunks;
  std::vector<double> partial;

  explicit PriorPlan(const Inputs& in) {
    std::vector<int64_t> first(in.prior_rows + 1, 0);
    if (in.prior_index.defined()) {
      sort_by_row(in, &first);
    } else {
      for (int64_t r = 0; r <= in.prior_rows; ++r) first[r] = in.prior_rows == 1 ? r * in.rows : r;
    }
    int64_t partials = 0;
    first_chunk.push_back(0);
    for (int64_t r = 0; r < in.prior_rows; ++r) {
      int64_t begin = first[r];
      do {
        const int64_t end = std::min(begin + kReparamChunk, first[r + 1]);
        chunks.push_back({r, begin, end, nullptr});
        begin = end;
      } while (begin < first[r + 1]);
      first_chunk.push_back(static_cast<int64_t>(chunks.size()));
      const int64_t count = first_chunk[r + 1] - first_chunk[r];
      if (count > 1) partials += count;
    }
    partial.resize(partials * 2 * in.columns);
    double* next = partial.data();
    for (int64_t r = 0; r < in.prior_rows; ++r) {
      if (first_chunk[r + 1] - first_chunk[r] < 2) continue;
      for (int64_t i = first_chunk[r]; i < first_chunk[r + 1]; ++i, next += 2 * in.columns) {
        chunks[i].partial = next;
      }
    }
  }

 private:
  void sort_by_row(const Inputs& in, std::vector<int64_t>* first) {
    const int64_t* labels = in.prior_index.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < in.rows; ++i) ++(*first)[labels[i] + 1];
    for (int64_t r = 0; r < in.prior_rows; ++r) (*first)[r + 1] += (*first)[r];
    std::vector<int64_t> next = *first;
    order.resize(in.rows);
    for (int64_t i = 0; i < in.rows; ++i) order[next[labels[i]]++] = i;
  }
};

template <class Kernels, class Args>
void prior_gradients(const Kernels& kernels, Args args, const Inputs& in) {
  const PriorPlan plan(in);
  args.order = plan.order.empty() ? nullptr : plan.order.data();
  args.chunks = plan.chunks.data();
  args.first_chunk = plan.first_chunk.data();
  const int64_t chunks = static_cast<int64_t>(plan.chunks.size());
  run(kernels.prior, args, chunks,
      in.columns * std::clamp<int64_t>(in.rows / std::max<int64_t>(1, chunks), 1, kReparamChunk));
  run(kernels.prior_sums, args, in.prior_rows, in.columns);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> reparam_kl_backward(
    const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl, const Tensor& mu,
    const Tensor& logvar, const std::optional<Tensor>& prior_mu,
    const std::optional<Tensor>& prior_logvar, const std::optional<Tensor>& prior_index,
    const std::optional<Tensor>& eps, const Tensor& z, const Tensor& used_seed, int64_t samples,
    std::optional<double> clamp_low, std::optional<double> clamp_high, double free_bits,
    int64_t parametrization, const c10::List<bool>& needs) {
  const Inputs in(mu, logvar, prior_mu, prior_logvar, prior_index, eps, samples);
  const Result grad_mu(mu, needs[0]), grad_logvar(logvar, needs[1]);
  const bool has_prior = prior_mu.has_value();
  const Result grad_prior_mu(has_prior ? *prior_mu : mu, has_prior && needs[2]);
  const Result grad_prior_logvar(has_prior ? *prior_logvar : mu, has_prior && needs[3]);
  Matrix grad_draws, drawn;
  if (grad_z.has_value()) {
    TORCH_CHECK_VALUE(
        grad_z->numel() == samples * mu.numel() && grad_z->scalar_type() == mu.scalar_type(),
        "fastgen.", kOp, "_backward: grad_z must be like z, got ", grad_z->scalar_type(), " ",
        grad_z->sizes());
    if (samples == 1) {
      grad_draws = Matrix(*grad_z);
    } else {
      grad_draws.tensor = grad_z->contiguous();
      grad_draws.step = in.columns;
    }
    if (samples == 1 && !in.eps.defined() && z.is_contiguous() && z.numel() == mu.numel()) {
      drawn = Matrix(z);
    }
  }
  Tensor weight;
  if (grad_kl.has_value()) {
    TORCH_CHECK_VALUE(grad_kl->dim() == 1 && grad_kl->size(0) == in.rows, "fastgen.", kOp,
                      "_backward: grad_kl must be (", in.rows, "), got ", grad_kl->sizes());
    weight = grad_kl->to(accumulation(mu));
  }
  dispatch(mu, [&](const auto& kernels, auto* storage, auto* arithmetic) {
    using S = std::remove_pointer_t<decltype(storage)>;
    using T = std::remove_pointer_t<decltype(arithmetic)>;
    auto args = in.arguments<S, T>({samples, clamp_low, clamp_high, free_bits, parametrization},
                                   seed_value(kOp, used_seed));
    args.grad_z = grad_draws.data<S>();
    args.grad_z_step = grad_draws.step;
    args.from_z = drawn.data<S>();
    if (weight.defined()) {
      args.grad_kl = weight.template const_data_ptr<T>();
      args.grad_kl_step = weight.stride(0);
    }
    args.grad_mu = grad_mu.data<S>();
    args.grad_logvar = grad_logvar.data<S>();
    args.grad_prior_mu = grad_prior_mu.data<S>();
    args.grad_prior_logvar = grad_prior_logvar.data<S>();
    if (in.rows > 0 && in.columns > 0 && (args.grad_mu || args.grad_logvar)) {
      const int64_t pieces = (in.columns + kReparamPiece - 1) / kReparamPiece;
      run(kernels.backward, args, in.rows * pieces, std::min(in.columns, kReparamPiece));
    }
    if (args.grad_prior_mu == nullptr && args.grad_prior_logvar == nullptr) return;
    if (weight.defined() && in.columns > 0) {
      prior_gradients(kernels, args, in);
    } else {
      if (grad_prior_mu.written.defined()) grad_prior_mu.written.zero_();
      if (grad_prior_logvar.written.defined()) grad_prior_logvar.written.zero_();
    }
  });
  return {grad_mu.finished(), grad_logvar.finished(), grad_prior_mu.finished(),
          grad_prior_logvar.finished()};
}

}  // namespace
}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("reparam_kl", &fastgen::reparam_kl);
  m.impl("reparam_kl_backward", &fastgen::reparam_kl_backward);
}
