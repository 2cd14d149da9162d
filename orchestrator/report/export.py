"""A sweep as three Parquet files for other tools: `trials`, `epochs` and `predictions`.

Their columns are these, whatever the sweep; each has its description in the file's schema.

- trials, a row a trial: what it is (sweep, study, group, phase, number, trial_id), how it ended (state, cause, error,
  attempt, seconds, score, chosen, tied, duplicate_of), where and on what it ran (host, device, software, commit, lock,
  protocol, learnt_from, scored_on), and the fields of TrainConfig under their names.
- epochs, a row a metric of an epoch of a trial: sweep, trial_id, epoch, metric, value.
- predictions, a row an image on which a complete trial was scored: sweep, trial_id, key, label, prediction, correct,
  confidence.
"""

from __future__ import annotations

import dataclasses
import io
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.study.selection import find_tied
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial
from trainer import run_folder
from trainer.config import field_types
from trainer.storage.files import read_bytes

PROVENANCE_COLUMNS = ("host", "device", "software", "commit", "lock", "protocol", "learnt_from", "scored_on")
FROM_CONFIG = "field of TrainConfig"


def _schema(columns: Iterable[tuple[str, pa.DataType, str]]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, metadata={"description": text}) for name, kind, text in columns])


def _config_type(hint: Any) -> pa.DataType:
    """Fields that take several kinds of value are text: 1 image is not a share of 1.0."""
    kinds = {type(kind) if isinstance(kind, str) else kind for kind in typing.get_args(hint) or (hint,)} - {type(None)}
    only = kinds.pop() if len(kinds) == 1 else str
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(only, pa.string())


TRIALS = _schema(
    [
        ("sweep", pa.string(), "name of the sweep"),
        ("study", pa.string(), "key of the study within it"),
        ("group", pa.string(), "group of the task"),
        ("phase", pa.string(), "search, or final"),
        ("number", pa.int64(), "place in its study and phase, from 0"),
        ("trial_id", pa.string(), "fingerprint of its TrainConfig"),
        ("state", pa.string(), "waiting, running, complete, pruned or failed"),
        ("cause", pa.string(), "why it failed"),
        ("error", pa.string(), "in one sentence"),
        ("attempt", pa.int64(), "how often it was handed out"),
        ("seconds", pa.float64(), "how long workers were busy with it"),
        ("score", pa.float64(), "accuracy at its last epoch, 0..1: of search trials on val, of final ones on test"),
        (
            "chosen",
            pa.bool_(),
            "whether it is its study's choice: of search trials the one, of final trials those of it",
        ),
        ("tied", pa.bool_(), "whether val cannot tell it from its study's best"),
        ("duplicate_of", pa.int64(), "number of the trial with the same config whose outcome it has"),
        *((name, pa.string(), f"told by its worker: {name}") for name in PROVENANCE_COLUMNS),
        *((name, _config_type(hint), FROM_CONFIG) for name, hint in field_types().items()),
    ]
)
EPOCHS = _schema(
    [
        ("sweep", pa.string(), "name of the sweep"),
        ("trial_id", pa.string(), "fingerprint of its TrainConfig"),
        ("epoch", pa.int64(), "counted from 1"),
        ("metric", pa.string(), "as MLflow has it, such as val/accuracy"),
        ("value", pa.float64(), "accuracies are 0..1"),
    ]
)
PREDICTIONS = _schema(
    [
        ("sweep", pa.string(), "name of the sweep"),
        ("trial_id", pa.string(), "fingerprint of its TrainConfig"),
        ("key", pa.string(), "name of the image in its task"),
        ("label", pa.int64(), "its class"),
        ("prediction", pa.int64(), "the class it was given"),
        ("correct", pa.bool_(), "whether they are the same"),
        ("confidence", pa.float64(), "softmax of the prediction, 0..1"),
    ]
)


def export_studies(studies: Sequence[Study], trials: Callable[[str], str], folder: Path) -> tuple[list[Path], int]:
    """Write the three files; each appears when it is whole. Final trials of an earlier choice are there, not chosen.

    Args:
        studies: with the epochs of their trials.
        trials: of a sweep's name, the folder (path or URI) with a folder a trial.

    Returns:
        The files, and how many complete trials have no predictions in their folder.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def rows(of: Callable[[Study], list[dict[str, Any]]], schema: pa.Schema) -> Iterator[pa.Table]:
        for study in studies:
            yield pa.Table.from_pylist(of(study), schema)

    absent: list[str] = []
    predictions = (table for study in studies for table in _predictions(study, trials(study.spec.name), absent))
    files = [
        _write(folder / "trials.parquet", TRIALS, rows(_trials, TRIALS)),
        _write(folder / "epochs.parquet", EPOCHS, rows(_epochs, EPOCHS)),
        _write(folder / "predictions.parquet", PREDICTIONS, predictions),
    ]
    return files, len(absent)


def trials_table(studies: Sequence[Study]) -> pa.Table:
    """Return a row for each trial, with the schema `TRIALS`."""
    return pa.Table.from_pylist([row for study in studies for row in _trials(study)], TRIALS)


def epochs_table(studies: Sequence[Study]) -> pa.Table:
    """Return a row for each metric of each epoch, with the schema `EPOCHS`. Load the studies with their epochs."""
    return pa.Table.from_pylist([row for study in studies for row in _epochs(study)], EPOCHS)


def _write(place: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> Path:
    draft = place.with_name(f".{place.name}.part")
    try:
        with pq.ParquetWriter(draft, schema) as writer:
            for table in tables:
                writer.write_table(table)
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)
    return place


def _every(study: Study) -> list[Trial]:
    return [*study.search_table.trials, *study.final_table.trials]


def _trials(study: Study) -> list[dict[str, Any]]:
    best, among = study.best, {trial.trial_id for trial in find_tied(study.requested_search_trials)}
    chosen = ({best.trial_id} if best is not None else set()) | {
        trial.trial_id for trial in study.requested_final_trials
    }
    return [
        {
            "sweep": study.spec.name,
            "study": study.plan.key,
            "group": study.plan.group,
            "phase": trial.phase,
            "number": trial.number,
            "trial_id": trial.trial_id,
            "state": trial.state.value,
            "cause": trial.cause.value if trial.cause else None,
            "error": trial.error_summary or None,
            "attempt": trial.attempt,
            "seconds": trial.seconds,
            "score": trial.score,
            "chosen": trial.trial_id in chosen,
            "tied": trial.trial_id in among,
            "duplicate_of": trial.duplicate_of,
            **{name: trial.provenance.get(name) for name in PROVENANCE_COLUMNS},
            **{name: _as(TRIALS.field(name).type, value) for name, value in dataclasses.asdict(trial.config).items()},
        }
        for trial in _every(study)
    ]


def _as(kind: pa.DataType, value: Any) -> Any:
    return str(value) if value is not None and kind == pa.string() else value


def _epochs(study: Study) -> list[dict[str, Any]]:
    return [
        {"sweep": study.spec.name, "trial_id": trial.trial_id, "epoch": epoch, "metric": metric, "value": value}
        for trial in _every(study)
        if trial.duplicate_of is None
        for epoch, metrics in enumerate(trial.epochs, start=1)
        for metric, value in metrics.items()
    ]


def _predictions(study: Study, trials: str, absent: list[str]) -> Iterator[pa.Table]:
    for trial in _every(study):
        if trial.score is None or trial.duplicate_of is not None:
            continue
        data = read_bytes(f"{trials}/{trial.trial_id}/{run_folder.PREDICTIONS}")
        if data is None:
            absent.append(trial.trial_id)
        else:
            table = pq.read_table(io.BytesIO(data))
            for place, name in enumerate(("sweep", "trial_id")):
                value = study.spec.name if name == "sweep" else trial.trial_id
                table = table.add_column(place, name, pa.array([value] * len(table), pa.string()))
            yield table.cast(PREDICTIONS)
