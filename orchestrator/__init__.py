"""Decides which configs to train, where they run, and what is stored.

The Python API is in `orchestrator.launch`: `launch`, `resume` and `open_sweep`.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
