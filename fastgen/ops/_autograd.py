"""Autograd of an op whose backward is an op: the names in the two schemas say how they connect.

An argument of `<op>_backward` is

- `grad_<result>`: the gradient of that result of the op, None if there is none;
- named as an argument of the op, or as a result of it: that value, saved;
- `needs`: for each of its results, whether anyone wants it;

and its results are `grad_<argument>`: the gradients of these arguments of the op. csrc/autograd.cpp
reads the schemas in the same way; where it was built it serves the ops named there, since a node in
Python costs tens of microseconds a step.
"""

import torch


def by_backward_op(op):
    """Registers the autograd of the op of this name, unless fastgen._C has done so."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"fastgen::{op}", "Autograd"):
        return
    forward = getattr(torch.ops.fastgen, op).default
    backward = getattr(torch.ops.fastgen, f"{op}_backward").default
    arguments = [a.name for a in forward._schema.arguments]
    results = [r.name for r in forward._schema.returns]
    wanted = [r.name.removeprefix("grad_") for r in backward._schema.returns]
    feed = [a.name for a in backward._schema.arguments]
    saved = [name for name in feed if name in arguments or name in results]
    differentiable = [name for name in results if f"grad_{name}" in feed]

    def setup(ctx, inputs, output):
        output = output if isinstance(output, tuple) else (output,)
        values = dict(zip(arguments, inputs, strict=False))
        values |= zip(results, output, strict=True)
        tensors = {name: values[name] for name in saved if isinstance(values[name], torch.Tensor)}
        ctx.names = list(tensors)
        ctx.others = {name: values[name] for name in saved if name not in tensors}
        ctx.save_for_backward(*tensors.values())
        others = [values[name] for name in results if name not in differentiable]
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)

    def run(ctx, *grads):
        if all(grad is None for grad in grads):
            return (None,) * len(arguments)
        values = dict(zip(ctx.names, ctx.saved_tensors, strict=True)) | ctx.others
        values |= {f"grad_{name}": grad for name, grad in zip(results, grads, strict=True)}
        needs = dict(zip(arguments, ctx.needs_input_grad, strict=False))
        values["needs"] = [bool(needs[name]) for name in wanted]
        found = backward(*(values[name] for name in feed))
        found = found if isinstance(found, tuple) else (found,)
        gradients = {n: g for n, g in zip(wanted, found, strict=True) if needs[n]}
        return tuple(gradients.get(name) for name in arguments)

    torch.library.register_autograd(f"fastgen::{op}", run, setup_context=setup)


def second_derivatives(op, reference):
    """Registers the autograd of `<op>_backward`: rare, so through its plain PyTorch reference."""
    name = f"{op}_backward"

    def setup(ctx, inputs, output):
        ctx.at = [i for i, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
        ctx.others = [None if isinstance(value, torch.Tensor) else value for value in inputs]
        ctx.save_for_backward(*(inputs[i] for i in ctx.at))

    def run(ctx, *grads):
        inputs, moving = list(ctx.others), []
        with torch.enable_grad():
            for i, value in zip(ctx.at, ctx.saved_tensors, strict=True):
                if ctx.needs_input_grad[i]:
                    value = value.detach().requires_grad_()
                    moving.append(i)
                inputs[i] = value
            found = reference(*inputs)
            found = found if isinstance(found, tuple) else (found,)
            pairs = [
                (f, g)
                for f, g in zip(found, grads, strict=True)
                if g is not None and f.requires_grad
            ]
            gradients = torch.autograd.grad(
                [f for f, _ in pairs],
                [inputs[i] for i in moving],
                [g for _, g in pairs],
                allow_unused=True,
            ) if pairs else [None] * len(moving)  # fmt: skip
        return tuple(dict(zip(moving, gradients, strict=True)).get(i) for i in range(len(inputs)))

    torch.library.register_autograd(f"fastgen::{name}", run, setup_context=setup)
