"""What scikit-learn's tools ask of an estimator, which is never imported here."""

import inspect
from numbers import Real

import numpy as np
from torch import Tensor


class Parameters:
    """Of a class that keeps every argument of its constructor, as it was given, under the
    argument's name: `sklearn.base.clone` compares them by identity."""

    def get_params(self, deep: bool = True) -> dict:
        """The constructor's arguments by name; `deep` is scikit-learn's, and changes nothing."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params) -> "Parameters":
        """Sets arguments of the constructor, for the next `fit`. Returns self.

        Raises ValueError for another name, and whatever the constructor refuses; nothing is set
        then.
        """
        old = self.get_params()
        for name in params:
            if name not in old:
                raise ValueError(
                    f"fastgen.{type(self).__name__}: set_params must get some of "
                    f"{', '.join(old)}, got {name}"
                )
        for name, value in type(self)(**old | params).get_params().items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """The call that makes this estimator, without keywords at their default."""
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name)
            if isinstance(value, (Tensor, np.ndarray)):
                shown.append(f"{name}=<{type(value).__name__} {tuple(value.shape)}>")
            elif parameter.kind is not parameter.KEYWORD_ONLY or value != parameter.default:
                # NumPy's numbers as plain ones
                shown.append(f"{name}={value if isinstance(value, Real) else repr(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"
