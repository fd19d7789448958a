"""dmol_nll: the negative log-likelihood of pixels under mixtures of discretised logistics."""

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import _autograd, _checks, _likelihoods
from fastgen.reference import dmol_nll as reference
from fastgen.reference.memory_format import empty_in_format_of

FORMS = ("exact", "pixelcnnpp")
_SETTINGS = "int components, bool coupled, int levels, bool exact, bool channels_last, "
_SETTINGS += "bool per_pixel"


def _example(device):
    params = torch.linspace(-2, 2, 2 * 20 * 35, device=device).sin().reshape(2, 20, 5, 7)
    x = (torch.arange(2 * 3 * 35, device=device) * 37 % 256).reshape(2, 3, 5, 7)
    return params, x, 2, True, 256, True, False, False


def _example_backward(device):
    return torch.linspace(0.5, 1, 2, device=device), *_example(device)


OP = _backends.define(
    f"dmol_nll(Tensor params, Tensor x, {_SETTINGS}) -> Tensor nll",
    reference.dmol_nll,
    triton="dmol_nll:dmol_nll",
    example=_example,
)
BACKWARD = _backends.define(
    f"dmol_nll_backward(Tensor grad_nll, Tensor params, Tensor x, {_SETTINGS})"
    " -> Tensor grad_params",
    reference.dmol_nll_backward,
    stem="dmol_nll",
    triton="dmol_nll:dmol_nll_backward",
    example=_example_backward,
)


def dmol_nll(
    params: Tensor,
    x: Tensor,
    *,
    components: int,
    coupled: bool = True,
    levels: int = 256,
    form: str = "exact",
    channels_last: bool = False,
    per_pixel: bool = False,
) -> Tensor:
    """-log p(x) under mixtures of logistic distributions cut into `levels` bins, in nats, summed
    over all pixels: the loss of PixelCNN++.

    Level k stands at ``2 k / (levels - 1) - 1`` and has the mass within ``1 / (levels - 1)`` of
    it; the lowest and the highest level also have all mass beyond. With K components and C colours:

    - coupled, C = 3, P = 10 K: K component logits; then for each colour K means, K log-scales, K
      coefficients. The mean of colour 1 gets + tanh(coefficient of colour 0) x_0, that of colour 2
      + tanh(coefficient of colour 1) x_0 + tanh(coefficient of colour 2) x_1, with the true
      colours x. A component is one for all colours.
    - coupled, C = 1, P = 3 K: K logits, K means, K log-scales.
    - uncoupled, any C: the same 3 K for each colour.

    Log-scales count as at least -7, with gradient 0 below.

    Args:
        params: (B, P, H, W), or uncoupled (B, 3 K, C, H, W); float32, float64, bfloat16 or float16
            (halves compute in float32). Any strides; torch's channels-last ones are used as they
            are.
        x: (B, C, H, W), integer levels 0 .. levels - 1, or floats in [-1, 1], rounded to the
            nearest level. Gets no gradient.
        components: K.
        coupled: whether the colours of a pixel share a component.
        levels: 2 .. 65536.
        form: "exact", the logarithm of the mass without any threshold; "pixelcnnpp", as in the
            code of 2017, which takes the density where the mass is below 1e-5: for published
            numbers.
        channels_last: params and x are (B, H, W, P) and (B, H, W, C); uncoupled parameters are
            (B, H, W, 3 K C) in the order of (3 K, C).
        per_pixel: return (B, H, W), summed over colours only.

    Returns:
        (B,), float32, or float64 for float64 params. Backward computes again what it needs:
        nothing is kept but params and x.

    Raises:
        TypeError: a dtype that is none of these.
        ValueError: parameters that do not match components and colours, pixels outside the levels,
            floats more than 1e-3 from one (on a GPU, where asking would wait for the device, the
            sample's result is NaN instead), mixed devices.

    Source: Salimans et al., PixelCNN++, 2017, sections 2.1 and 2.2, and its published code.
    """
    _check(params, x, components, coupled, levels, form, channels_last)
    return OP(
        params, x, components, bool(coupled), levels, form == "exact", bool(channels_last),
        bool(per_pixel),
    )  # fmt: skip


def _refuse(argument, expected, got, remedy, error=ValueError):
    raise error(f"fastgen.dmol_nll: {argument} {expected}, got {got}; {remedy}")


def _check(params, x, components, coupled, levels, form, channels_last):
    _checks.float_tensor("dmol_nll", "params", params)
    _checks.tensor("dmol_nll", "x", x)
    if x.dtype == torch.bool or x.is_complex():
        _refuse("x", "must hold integers or floats", x.dtype, "use .long()", TypeError)
    for name, value, least, most in (
        ("components", components, 1, 2**20),
        ("levels", levels, 2, 2**16),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            _refuse(name, f"must be an int in {least} .. {most}", repr(value), "PixelCNN++ has 10 "
                    "components and 256 levels")  # fmt: skip
    if form not in FORMS:
        _refuse("form", f"must be one of {', '.join(FORMS)}", repr(form), "choose one")
    axis = -1 if channels_last else 1
    layout = "(B, H, W, C)" if channels_last else "(B, C, H, W)"
    if x.dim() != 4:
        _refuse("x", f"must be {layout}", tuple(x.shape), "add the missing axes")
    colors = x.shape[axis]
    if coupled and colors not in (1, 3):
        _refuse("x", "must have 1 or 3 colours if coupled", colors, "use coupled=False")
    spatial = list(x.shape[1:3]) if channels_last else list(x.shape[2:])
    batch = x.shape[0]
    if channels_last:
        count = 3 * components * colors if not coupled else (10 if colors == 3 else 3) * components
        expected = [batch, *spatial, count]
    elif coupled:
        expected = [batch, (10 if colors == 3 else 3) * components, *spatial]
    else:
        expected = [batch, 3 * components, colors, *spatial]
    if list(params.shape) != expected:
        kind = "coupled" if coupled else "uncoupled"
        _refuse(
            "params",
            f"must be {tuple(expected)} for {components} {kind} components and x {tuple(x.shape)}",
            tuple(params.shape),
            "check components=, coupled= and channels_last=",
        )
    if x.device != params.device:
        remedy = f"move it with x.to({str(params.device)!r})"
        _refuse("x", f"must be on params' device {params.device}", x.device, remedy)


@torch.library.register_fake("fastgen::dmol_nll")
def _(params, x, components, coupled, levels, exact, channels_last, per_pixel):
    spatial = x.shape[1:3] if channels_last else x.shape[2:]
    shape = (*x.shape[:1], *spatial) if per_pixel else None
    return _likelihoods.empty_per_sample(params, shape)


@torch.library.register_fake("fastgen::dmol_nll_backward")
def _(grad_nll, params, x, components, coupled, levels, exact, channels_last, per_pixel):
    return empty_in_format_of(params, params.shape)


_autograd.by_backward_op("dmol_nll")
_autograd.second_derivatives("dmol_nll", reference.dmol_nll_backward)
