"""The device a command runs on."""

import torch


def chosen(device: str | None) -> torch.device:
    """`device`, or by default the GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(
            f"fastgen: device must be one that torch can use here, got {name!r} "
            f"({str(error).splitlines()[0]}); use cpu, or leave it out for the default"
        ) from None
    return torch.device(name)
