"""Loader of models that version 0.1.0 registered. Their `MLmodel` files name this module, so it must keep its name."""

from orchestrator.tracking.mlflow_pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
