"""Small autoregressive models in the styles people write them in; none knows of the compiler."""

from zoo import (
    attention,
    colours,
    conditions,
    masked,
    orders,
    outputs,
    refused,
    sequences,
    shifted,
    streams,
    transformer,
)

_STYLES = (
    masked,
    streams,
    shifted,
    colours,
    attention,
    transformer,
    orders,
    sequences,
    conditions,
    outputs,
)
CASES = [case for style in _STYLES for case in style.CASES]
HALF = masked.HALF
REFUSED = refused
