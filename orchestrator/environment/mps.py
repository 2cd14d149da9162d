"""NVIDIA's Multi-Process Service (MPS). With its daemon, processes that share a GPU run side by side.

Without it they take turns, and several of them are hardly faster than one.
"""

from __future__ import annotations

import os
import socket

FOLDER_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
DEFAULT_FOLDER = "/tmp/nvidia-mps"
CONNECT_TIMEOUT_S = 1.0


def mps_socket() -> str:
    """Return the path of the socket at which CUDA looks for the daemon."""
    return f"{os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER}/control"


def has_mps() -> bool:
    """Return whether the daemon of this machine answers.

    CUDA asks in the same way, once a process, and does without the daemon if none answers. A daemon that was killed
    leaves its socket behind, so the file alone says nothing.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(CONNECT_TIMEOUT_S)
            client.connect(mps_socket())
    except OSError:
        return False
    return True
