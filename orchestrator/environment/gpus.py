"""The GPUs of this machine as torch sees them, in a process of its own: torch takes seconds to import."""

from __future__ import annotations

import os
import subprocess
import sys

GPU_NAMES = """
import torch
for index in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_name(index))
"""


def torch_gpus(*, hidden_too: bool = False) -> tuple[tuple[str, ...], str]:
    """Return the names of the GPUs, and an error or an empty text.

    Args:
        hidden_too: whether to count GPUs that CUDA_VISIBLE_DEVICES hides, as Ray does in a task without GPUs.
    """
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    process = subprocess.run(
        [sys.executable, "-c", GPU_NAMES],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment if hidden_too else None,
        check=False,
    )
    if process.returncode != 0:
        # The last line of a traceback is the error.
        messages = process.stderr.strip().splitlines() or ["torch cannot be imported"]
        return (), messages[-1]
    return tuple(process.stdout.split("\n")[:-1]), ""
