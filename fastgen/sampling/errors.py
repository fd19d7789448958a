"""What a model can be refused for."""


class UnsupportedModelError(ValueError):
    """The sampling compiler cannot compile the model; the message says which op and what to do."""


class NotCausalError(ValueError):
    """An output depends on a code that is drawn with it or after it."""
