"""Functions written as expressions of graph.py."""


def num(value):
    return ("num", float(value))


def truncated(x):
    return ("where", ("lt", x, ("num", 0.0)), ("ceil", x), ("floor", x))


def truth(x):
    return ("ne", x, num(0))


def softplus_of_minus(x):
    return ("log1p", ("exp", ("neg", ("abs", x))))


def softplus(x):
    return ("add", ("relu", x), softplus_of_minus(x))


def log_sigmoid(x):
    return ("neg", softplus(("neg", x)))


def hard_sigmoid(x):
    return ("minimum", ("relu", ("mul", ("add", x, num(3)), num(1 / 6))), num(1))


def hypotenuse(x):
    return ("sqrt", ("add", num(1), ("mul", x, x)))


def complement(x):
    return ("sqrt", ("sub", num(1), ("mul", x, x)))


def arctanh(x):
    return ("mul", num(0.5), ("sub", ("log1p", x), ("log1p", ("neg", x))))


def arctangent(x):
    """Halves the angle three times, atan(x) = 2 atan(x / (1 + sqrt(1 + x^2))); what is left is
    below 0.2, where ten terms of the series are exact in float64."""
    for _ in range(3):
        x = ("div", x, ("add", num(1), hypotenuse(x)))
    square = ("mul", x, x)
    total = num(0)
    for power in range(21, 0, -2):
        total = ("add", num((-1) ** (power // 2) / power), ("mul", square, total))
    return ("mul", num(8), ("mul", x, total))


_SMALL_POWERS = range(2, 17)


def power(x, y):
    if y[0] == "num":
        if y[1] in _SMALL_POWERS:
            half = power(x, num(y[1] // 2))
            return ("mul", half, half) if y[1] % 2 == 0 else ("mul", x, ("mul", half, half))
        if y[1] == 0.5:
            return ("sqrt", x)
        if y[1] == 1:
            return x
    return ("pow", x, y)
