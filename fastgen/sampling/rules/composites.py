"""Fused ops in terms of simpler ones, which are traced instead."""

import math

import torch
import torch.nn.functional as F

from fastgen.sampling.rules.registry import decomposes


@decomposes("scaled_dot_product_attention")
def _attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    *,
    scale=None,
    enable_gqa=False,
):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.ops.aten._safe_softmax(scores, -1) @ value


@decomposes("_scaled_dot_product_flash_attention_for_cpu")
def _attention_on_cpu(
    query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None
):
    found = _attention(query, key, value, attn_mask, 0.0, is_causal, scale=scale)
    return found, query.new_empty(0)  # the second is for a backward


@decomposes("_scaled_dot_product_attention_math")
def _attention_math(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, dropout_mask=None, **others
):
    return _attention(query, key, value, attn_mask, 0.0, is_causal, **others), query.new_empty(0)


@decomposes("_fused_rms_norm")
def _rms_norm(x, normalized_shape, weight=None, eps=None):
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    found = x * torch.rsqrt(x.square().mean(axes, keepdim=True) + eps)
    return found if weight is None else found * weight, x.new_empty(0)


@decomposes("mkldnn_rnn_layer")
def _lstm_layer(x, w0, w1, w2, w3, hidden, cell, reverse, sizes, mode, *others):
    """x (T, B, I): one direction of one layer of an LSTM, one step after the other."""
    if mode != 2:
        return NotImplemented
    steps, found = range(len(x)), [None] * len(x)
    for i in reversed(steps) if reverse else steps:
        gates = F.linear(x[i], w0, w2) + F.linear(hidden, w1, w3)
        take, forget, new, show = gates.chunk(4, -1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
        hidden = torch.sigmoid(show) * torch.tanh(cell)
        found[i] = hidden
    return torch.stack(found), hidden, cell, x.new_empty(0)
