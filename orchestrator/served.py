"""Models registered by version 0.1.0 name this module as their loader."""

from orchestrator.tracking.mlflow_pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
