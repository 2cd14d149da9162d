"""Models of final trials: MLflow loads what is saved today, and what version 0.1.0 saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pyarrow.parquet as pq
import pytest

from orchestrator.tracking.mlflow_registry import MODEL_FOLDER, save_model
from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.training.loop import train


@pytest.fixture(
    scope="module",
    params=[*((method, "pretrained") for method in METHODS), ("linear", "fresh")],
    ids=" ".join,
)
def run_folder(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a method, with its model."""
    folder = tmp_path_factory.mktemp("run")
    method, final_norm = request.param
    params: dict[str, Any] = {"task": "demo/digits", "backbone": "vit_nano_patch4_32.mae", "method": method}
    params |= {"train_size": 0.05, "batch_size": 16, "epochs": 1, "warmup_epochs": 0, "lr": 1e-2}
    params |= {"eval_split": "test", "final_norm": final_norm}
    if METHODS[method].prompted_layers != "none":
        params |= {"prompt_length": 3, "prompt_init": METHODS[method].prompt_inits[0]}
    config = TrainConfig.from_params(params)
    assert [epoch.epoch for epoch in train(config, data_root=str(store), folder=str(folder))] == [1]
    save_model(folder)
    return folder


@pytest.mark.parametrize("loader", ["orchestrator.tracking.mlflow_pyfunc", "orchestrator.served"])
def test_every_methods_model_predicts_what_its_trial_predicted_whichever_version_saved_it(
    run_folder: Path, store: Path, loader: str
) -> None:
    recipe = run_folder / MODEL_FOLDER / "MLmodel"
    today = "loader_module: orchestrator.tracking.mlflow_pyfunc"
    text = recipe.read_text()
    assert today in text
    recipe.write_text(text.replace(today, f"loader_module: {loader}"))
    try:
        model = mlflow.pyfunc.load_model(str(run_folder / MODEL_FOLDER))
    finally:
        recipe.write_text(text)

    images = pq.read_table(store / "demo/digits/test.parquet", columns=["image"]).to_pandas()[:5]
    scored = pq.read_table(run_folder / "predictions.parquet").to_pandas()[:5]
    answer = model.predict(images)
    assert isinstance(answer, pd.DataFrame)
    assert list(answer["class_name"]) == [str(label) for label in scored["prediction"]]
    assert answer["confidence"].to_numpy() == pytest.approx(scored["confidence"].to_numpy(), abs=1e-5)
