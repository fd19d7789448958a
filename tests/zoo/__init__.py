"""Small autoregressive models in the styles people write them in; none knows of the compiler."""

from zoo import (
    attention,
    colours,
    conditions,
    indexing,
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
    indexing,
)
CASES = [case for style in _STYLES for case in style.CASES]
HALF = masked.HALF
REFUSED = refused
