"""The rule by which a sampler's draws are called equal to the naive sampler's."""

import torch

EDGE = 1e-5  # a draw whose uniform is nearer to an edge of its cdf may fall either way
PER_TIE = 5000  # of so many draws one may


def redraw(likelihood, params, uniforms, temperature=1.0):
    """What `uniforms` (n, D, C, ...) draw from params (n, K, C or 1, ...): codes (n, C, ...)."""
    space = uniforms.shape[3:]
    rows = params.flatten(3).movedim(-1, 1).flatten(0, 1)
    noise = uniforms.flatten(3).movedim(-1, 1).flatten(0, 1)
    codes = likelihood.sample(rows, noise, temperature)
    return codes.view(len(params), -1, codes.shape[1]).transpose(1, 2).unflatten(2, space)


def ties(likelihood, params, uniforms, temperature=1.0):
    """bool (n, C, ...): a uniform moved by EDGE draws another code."""
    codes = redraw(likelihood, params, uniforms, temperature)
    tied = torch.zeros_like(codes, dtype=torch.bool)
    for draw in range(uniforms.shape[1]):
        for edge in (-EDGE, EDGE):
            moved = uniforms.double().clone()
            moved[:, draw] = (moved[:, draw] + edge).clamp(0, 1 - 2**-53)
            tied |= redraw(likelihood, params, moved, temperature) != codes
    return tied


def assert_exact(likelihood, params, uniforms, codes, naive, drawn=None, temperature=1.0):
    """params: of one full forward on `codes`, the samples; naive: the naive sampler's with the same
    uniforms; drawn: bool, where codes were drawn and not given."""
    wrong = redraw(likelihood, params, uniforms, temperature) != codes
    tied = ties(likelihood, params, uniforms, temperature)
    if drawn is not None:
        wrong, tied = wrong & drawn, tied & drawn
    assert not (wrong & ~tied).any(), f"{int((wrong & ~tied).sum())} draws are wrong, not ties"
    allowed = -(-codes.numel() // PER_TIE)
    assert wrong.sum() <= allowed, f"{int(wrong.sum())} ties of {codes.numel()} draws differ"
    clear = ~tied.flatten(1).any(1)
    assert torch.equal(codes[clear], naive[clear])
