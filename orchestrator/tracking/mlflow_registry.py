"""MLflow's models: save the model of a final trial, and register it."""

from __future__ import annotations

import importlib.metadata
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.environment.home import Home
from orchestrator.errors import UserError
from orchestrator.tracking import mlflow_pyfunc
from orchestrator.tracking.mlflow_client import connect, explain, is_refusal
from orchestrator.tracking.mlflow_locations import correct_locations
from orchestrator.tracking.mlflow_pyfunc import MODEL_FILES
from trainer.metric_names import accuracy_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MODEL_FOLDER = "model"
"""Folder of the model among the artifacts of a final trial."""
VERSION_TAGS = ("sweep", "task", "method", "backbone", "train_size", "draw", "seed", "trial_id", "commit", "software")
"""Tags of a trial's run that its registered model has, too."""
MAX_ATTEMPTS = 3
"""How often a registration is tried if MLflow does not answer."""


def save_model(folder: Path) -> None:
    """Save the model of a trial in the form that `mlflow.pyfunc.load_model` and `mlflow models serve` read.

    Args:
        folder: the trial's artifacts. The model is written to its subfolder `MODEL_FOLDER`.
    """
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    # The signature describes the input, and an example image would be stored with each trial.
    warnings.filterwarnings("ignore", ".*input example was not provided")

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(DataType.string, "class_name"), ColSpec(DataType.double, "confidence")]),
    )
    with tempfile.TemporaryDirectory() as scratch:
        # Only these: the artifacts also hold plots, and MLflow copies the whole data path.
        for name in MODEL_FILES:
            Path(scratch, name).write_bytes((folder / name).read_bytes())

        pyfunc.save_model(
            str(folder / MODEL_FOLDER),
            loader_module=mlflow_pyfunc.__name__,
            data_path=scratch,
            pip_requirements=[f"sptune=={importlib.metadata.version('sptune')}"],
            signature=signature,
        )


def register(home: Home, run_id: str, name: str) -> str:
    """Register the model of a final trial, and return its version. A model that is registered keeps its version.

    Args:
        home: home of the sweep.
        run_id: the trial's MLflow run.
        name: name of the registered model.

    Raises:
        UserError: if the run has no model, or MLflow refuses, with its reason.
    """
    from mlflow.exceptions import MlflowException

    correct_locations(home)
    client = connect(home.mlflow_uri)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            if not client.list_artifacts(run_id, MODEL_FOLDER):
                raise UserError(f"run {run_id} has no model among its artifacts; name a final trial that is complete.")
            return _get_or_create_version(client, run_id, name)
        except MlflowException as error:
            # The version may have been created although the answer was lost, so the next attempt looks first.
            if attempt == MAX_ATTEMPTS or is_refusal(error):
                raise UserError(f"MLflow does not register {name}: it {explain(error)}.") from None
    raise AssertionError("the last attempt returns or raises")


def _get_or_create_version(client: MlflowClient, run_id: str, name: str) -> str:
    """Return the version of a run's model, which is registered unless it is already: there is one version a run."""
    _create_registered_model(client, name)
    run = client.get_run(run_id)
    tags = {key: run.data.tags[key] for key in VERSION_TAGS if key in run.data.tags}
    description = _describe(run)
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == run_id:
            # Earlier versions of sptune registered a model without them. What a person wrote stays.
            if not version.description:
                client.update_model_version(name, version.version, description)
            for key, text in tags.items():
                if key not in version.tags:
                    client.set_model_version_tag(name, version.version, key, text)
            return str(version.version)

    source = f"{run.info.artifact_uri}/{MODEL_FOLDER}"
    return str(client.create_model_version(name, source, run_id, tags=tags, description=description).version)


def _describe(run: Run) -> str:
    """Return what a model is, how good it is and how it is used, in Markdown."""
    tags = run.data.tags
    study = f"{tags['method']} on {tags['task']}, {tags['backbone']}, train size {tags['train_size']}"
    return (
        f"{study}, seed {tags['seed']}: test accuracy {100 * run.data.metrics[accuracy_of('test')]:.1f} %. "
        f"Final trial {tags['trial_id']} of the sweep {tags['sweep']}.\n\n"
        "A row of input is an encoded image (PNG, JPEG; base64 in JSON) in the column `image`. A row of output is the "
        "most likely class and its confidence (0 to 1). The weights of the backbone are not in the model: they are "
        "searched as for training (`SPTUNE_WEIGHTS`)."
    )


def _create_registered_model(client: MlflowClient, name: str) -> None:
    """Create a registered model without versions, unless it exists."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Final trials of sptune, registered by `sptune register`.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
