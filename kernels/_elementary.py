"""Elementary functions without cancellation, for float32 and float64 tiles.

The polynomials interpolate at Chebyshev's points of the interval they are for: within 6e-9 of the
function (relative) in float32, 5e-17 in float64.
"""

import triton
import triton.language as tl


@triton.jit
def scalar(value, dtype: tl.constexpr):
    """A float64 argument of a kernel, in the dtype of the computation: it must not widen what it
    meets, nor lose digits on its way to a float64 tile."""
    return tl.full((), value, dtype)


@triton.jit
def product(a, b):
    """a b, and 0 wherever one is 0, also times infinity."""
    return tl.where((a == 0) | (b == 0), 0.0, a * b)


@triton.jit
def weighted(a, b):
    """a b, and 0 wherever a is 0."""
    return tl.where(a == 0, 0.0, a * b)


@triton.jit
def exp_tail(d):
    """(exp(d) - 1 - d) / d^2 for -1 <= d <= 1."""
    if d.dtype == tl.float64:
        y = d * 7.746178593018827e-13 + 1.1639194124150522e-11
        y = (y * d + 1.6057679623801638e-10) * d + 2.0874435575864273e-09
        y = (y * d + 2.5052117695907823e-08) * d + 2.755733506893373e-07
        y = (y * d + 2.7557319191381816e-06) * d + 2.4801587246096818e-05
        y = (y * d + 1.9841269841324198e-4) * d + 1.3888888888981404e-3
        y = (y * d + 8.333333333333299e-3) * d + 4.166666666666609e-2
        y = (y * d + 0.16666666666666666) * d + 0.5
    else:
        y = d * 2.8062802582276946e-06 + 2.535851224463976e-05
        y = (y * d + 1.9838101968683888e-4) * d + 1.3885396911807102e-3
        y = (y * d + 8.33333967591706e-3) * d + 4.166673659523746e-2
        y = (y * d + 0.16666666646842135) * d + 0.49999999781421683
    return y


@triton.jit
def exp_gaps(d):
    """exp(d) - 1 and exp(d) - 1 - d; the latter is inf for both infinities."""
    is_small = tl.abs(d) < 1.0
    near = d * d * exp_tail(d)
    e = tl.where(is_small, d + near, tl.exp(d) - 1.0)
    gap = tl.where(is_small, near, e - d)
    return e, tl.where(d == float("inf"), float("inf"), gap)


@triton.jit
def log1p_fraction(x):
    """log(1 + x) for 0 <= x <= 1, with as many digits for tiny x."""
    s = x / (2.0 + x)
    z = s * s
    if x.dtype == tl.float64:
        y = z * 0.17044163562781398 + 0.0832450651186082
        y = (y * z + 0.12110168728069218) * z + 0.13300374032674625
        y = (y * z + 0.1538661404230401) * z + 0.18181740832504806
        y = (y * z + 0.22222224080747674) * z + 0.28571428545454114
        y = (y * z + 0.4000000000018575) * z + 0.6666666666666615
        y = y * z + 2.0
    else:
        y = z * 0.2815777836310908 + 0.27965157745197267
        y = (y * z + 0.40024595230703747) * z + 0.6666632164137777
        y = y * z + 2.000000007681759
    return s * y


@triton.jit
def softplus(x):
    """log(1 + exp(x))"""
    return tl.maximum(x, 0.0) + log1p_fraction(tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def sine_and_cosine(f):
    """Of 2 pi f for -1/8 <= f <= 1/8."""
    z = f * f
    if f.dtype == tl.float64:
        s = z * -0.7116358090781666 + 3.8197881201632113
        s = (s * z - 15.094640403891546) * z + 42.05869392898878
        s = (s * z - 76.70585975299812) * z + 81.60524927607493
        s = (s * z - 41.34170224039976) * z + 6.283185307179586
        c = z * -1.6968494702918826 + 7.903091687751697
        c = (c * z - 26.426250908622137) * z + 60.244641328867296
        c = (c * z - 85.45681720652271) * z + 64.93939402266795
        c = (c * z - 19.739208802178716) * z + 1.0
    else:
        s = z * 41.47283323950919 - 76.6978663502028
        s = (s * z + 81.60520471104576) * z - 41.341702153394905
        s = s * z + 6.2831853071524
        c = z * 59.2201689582961 - 85.44284467308167
        c = (c * z + 64.93931613570905) * z - 19.739208650130596
        c = c * z + 1.0
    return f * s, c
