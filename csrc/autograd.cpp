// Autograd of ops whose backward is an op: the names in the two schemas say how they connect, by
// the rules of fastgen/ops/_autograd.py, which does the same in Python where this file is not
// built. A node made here costs a few microseconds a step, one made in Python tens.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <vector>

namespace fastgen {
namespace {

using at::Tensor;
using c10::IValue;
using torch::autograd::variable_list;
using torch::jit::Stack;

const std::string kGradOf = "grad_";

int position(const std::vector<c10::Argument>& among, const std::string& name) {
  for (size_t i = 0; i < among.size(); ++i) {
    if (among[i].name() == name) return static_cast<int>(i);
  }
  return -1;
}

bool holds_tensor(const c10::Argument& argument) {
  const c10::TypePtr type = argument.type();
  const auto optional = type->cast<c10::OptionalType>();
  return (optional ? optional->getElementType() : type)->kind() == c10::TypeKind::TensorType;
}

// How an op and its backward connect.
struct Wiring {
  enum class Source { kGrad, kTensorArgument, kOtherArgument, kResult, kNeeds };
  struct Feed {  // where an argument of backward comes from
    Source source;
    int index;  // among the op's arguments or results
  };

  c10::OperatorHandle backward;
  std::vector<Feed> feeds;
  std::vector<int> moved;  // the op's arguments that backward's results are gradients of
  size_t arguments;

  explicit Wiring(const c10::OperatorHandle& op)
      : backward(c10::Dispatcher::singleton().findSchemaOrThrow(
            (op.operator_name().name + "_backward").c_str(), "")),
        arguments(op.schema().arguments().size()) {
    for (const auto& argument : backward.schema().arguments()) feeds.push_back(feed(op, argument));
    for (const auto& result : backward.schema().returns()) {
      const std::string of = result.name().substr(kGradOf.size());
      moved.push_back(position(op.schema().arguments(), of));
      TORCH_INTERNAL_ASSERT(moved.back() >= 0, "no argument ", of, " of ", op.operator_name());
    }
  }

  static Feed feed(const c10::OperatorHandle& op, const c10::Argument& argument) {
    const std::string& name = argument.name();
    if (name == "needs") return {Source::kNeeds, 0};
    if (const int i = position(op.schema().arguments(), name); i >= 0) {
      return {holds_tensor(argument) ? Source::kTensorArgument : Source::kOtherArgument, i};
    }
    if (const int i = position(op.schema().returns(), name); i >= 0) return {Source::kResult, i};
    const int i = position(op.schema().returns(), name.substr(kGradOf.size()));
    TORCH_INTERNAL_ASSERT(i >= 0, "no source of ", name, " for ", op.operator_name());
    return {Source::kGrad, i};
  }
};

// Results without a gradient are integers, which autograd leaves alone.
struct Connected : torch::autograd::Function<Connected> {
  static constexpr bool is_traceable =
      true;  // by compiled autograd: backward needs its context alone

  // `stack`: the op's arguments. `moved`: those that have gradients, for autograd to know of.
  static variable_list forward(torch::autograd::AutogradContext* context, const Wiring* wiring,
                               const c10::OperatorHandle* op, c10::DispatchKeySet keys,
                               const Stack* stack, at::TensorList /* moved */) {
    Stack results_stack(*stack);
    {
      at::AutoDispatchBelowADInplaceOrView guard;
      op->redispatchBoxed(keys & c10::after_autograd_keyset, &results_stack);
    }
    variable_list results, saved;
    for (const IValue& result : results_stack) results.push_back(result.toTensor());
    std::vector<IValue> others;
    for (const Wiring::Feed& feed : wiring->feeds) {
      if (feed.source == Wiring::Source::kResult) {
        saved.push_back(results[feed.index]);
      } else if (feed.source == Wiring::Source::kTensorArgument) {
        const IValue& value = (*stack)[feed.index];
        saved.push_back(value.isTensor() ? value.toTensor() : Tensor());
      } else if (feed.source == Wiring::Source::kOtherArgument) {
        others.push_back((*stack)[feed.index]);
      }
    }
    context->save_for_backward(std::move(saved));
    for (int i : wiring->moved) others.emplace_back((*stack)[i].isTensor());
    others.emplace_back(reinterpret_cast<int64_t>(wiring));
    context->saved_data["others"] = c10::ivalue::Tuple::create(std::move(others));
    context->set_materialize_grads(false);
    return results;
  }

  static variable_list backward(torch::autograd::AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const auto kept = context->saved_data["others"].toTuple();
    const auto& others = kept->elements();
    const auto* wiring = reinterpret_cast<const Wiring*>(others.back().toInt());

    Stack stack;
    size_t next_saved = 0, next_other = 0;
    for (const Wiring::Feed& feed : wiring->feeds) {
      Tensor value;
      switch (feed.source) {
        case Wiring::Source::kOtherArgument:
          stack.push_back(others[next_other++]);
          continue;
        case Wiring::Source::kNeeds:
          stack.emplace_back();  // below, when all arguments are known
          continue;
        case Wiring::Source::kGrad:
          value = grads[feed.index];
          break;
        case Wiring::Source::kResult:
        case Wiring::Source::kTensorArgument:
          value = saved[next_saved++];
          break;
      }
      stack.emplace_back(value.defined() ? IValue(std::move(value)) : IValue());
    }
    bool is_reached = false;
    for (const Tensor& grad : grads) is_reached |= grad.defined();
    c10::List<bool> needs;
    size_t edge = 0;
    for (size_t i = 0; i < wiring->moved.size(); ++i) {
      const bool is_tensor = others[next_other + i].toBool();
      const bool is_needed = is_tensor && context->needs_input_grad(edge++);
      needs.push_back(is_needed && is_reached);
    }
    for (size_t i = 0; i < stack.size(); ++i) {
      if (wiring->feeds[i].source == Wiring::Source::kNeeds) stack[i] = needs;
    }
    if (is_reached) call(wiring->backward, &stack);

    variable_list out(4);  // of the other arguments of `forward`
    for (size_t i = 0; i < wiring->moved.size(); ++i) {
      if (others[next_other + i].toBool()) {
        out.push_back(needs[i] ? stack[i].toTensor() : Tensor());
      }
    }
    return out;
  }

 private:
  // Second derivatives have their autograd in Python; who does not ask for them does not pay.
  static void call(const c10::OperatorHandle& op, Stack* stack) {
    if (at::GradMode::is_enabled()) {
      op.callBoxed(stack);
    } else {
      at::AutoDispatchBelowADInplaceOrView guard;
      op.callBoxed(stack);
    }
  }
};

template <int kOp>
void autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  static const Wiring wiring(op);
  const size_t first = stack->size() - wiring.arguments;
  std::vector<Tensor> moved;
  bool is_moved = false;
  for (int i : wiring.moved) {
    const IValue& value = (*stack)[first + i];
    if (!value.isTensor()) continue;
    moved.push_back(value.toTensor());
    is_moved |= moved.back().requires_grad();
  }
  if (!is_moved || !at::GradMode::is_enabled()) {
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
    return;
  }
  const Stack arguments(stack->begin() + first, stack->end());
  const Stack* given = &arguments;
  variable_list results = Connected::apply(&wiring, &op, keys, given, at::TensorList(moved));
  torch::jit::drop(*stack, wiring.arguments);
  for (Tensor& result : results) stack->emplace_back(std::move(result));
}

}  // namespace
}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, Autograd, m) {
  using torch::CppFunction;
  m.impl("add_noise", CppFunction::makeFromBoxedFunction<&fastgen::autograd<0>>());
  m.impl("bernoulli_nll", CppFunction::makeFromBoxedFunction<&fastgen::autograd<1>>());
  m.impl("dmol_nll", CppFunction::makeFromBoxedFunction<&fastgen::autograd<2>>());
  m.impl("gaussian_nll", CppFunction::makeFromBoxedFunction<&fastgen::autograd<3>>());
  m.impl("reparam_kl", CppFunction::makeFromBoxedFunction<&fastgen::autograd<4>>());
}
