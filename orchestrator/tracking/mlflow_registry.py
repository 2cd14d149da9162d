"""The door to MLflow's models: what it makes of a final trial, and its registry."""

from __future__ import annotations

import importlib.metadata
import tempfile
import warnings
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.tracking import mlflow_pyfunc as served
from orchestrator.tracking.mlflow_pyfunc import MODEL_FILES

MODEL_FOLDER = "model"
"""Folder of a final trial's model among its artifacts."""


def save_model(folder: Path) -> None:
    """Beside a trial's artifacts, the folder that `mlflow.pyfunc.load_model` and `mlflow models serve` understand."""
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    warnings.filterwarnings("ignore", ".*input example was not provided")  # the schema says what an input is
    with tempfile.TemporaryDirectory() as scratch:
        for name in MODEL_FILES:
            Path(scratch, name).write_bytes((folder / name).read_bytes())
        pyfunc.save_model(
            str(folder / MODEL_FOLDER),
            loader_module=served.__name__,
            data_path=scratch,
            pip_requirements=[f"sptune=={importlib.metadata.version('sptune')}"],
            signature=ModelSignature(
                inputs=Schema([ColSpec(DataType.binary, "image")]),
                outputs=Schema([ColSpec(DataType.string, "class_name"), ColSpec(DataType.double, "confidence")]),
            ),
        )


def register(uri: str, run_id: str, name: str) -> str:
    """Put a final trial's model into the registry; the version that it has there, the same when asked again.

    Raises:
        UserError: if the run has no model, or MLflow refuses, with its reason.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    try:
        if not client.list_artifacts(run_id, MODEL_FOLDER):
            raise UserError(f"run {run_id} has no model among its artifacts.")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.run_id == run_id:
                return str(version.version)
        source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}"
        return str(client.create_model_version(name, source, run_id).version)
    except MlflowException as error:
        raise UserError(f"MLflow does not register {name}: {error.message}") from None
