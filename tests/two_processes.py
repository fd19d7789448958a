"""A script run as two gloo processes, for tests of what is distributed."""

import subprocess
import sys

import torch


def two_processes(script, folder):
    """What each found: `script RANK 2 FOLDER` leaves it in FOLDER/rankRANK."""
    command = [sys.executable, "-W", "ignore", script]
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"rank{rank}", weights_only=False) for rank in range(2)]
