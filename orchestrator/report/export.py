"""Export of sweeps as three Parquet files for other tools: `trials`, `epochs` and `predictions`.

The columns are the same for every sweep. The schema of each file contains a description of each column.

- trials, one row per trial: its identity (sweep, study, group, phase, number, trial_id), its outcome (state, cause,
  error, attempt, seconds, score, chosen, tied, duplicate_of), where and with what it was trained (host, device,
  arithmetic, software, commit, lock, protocol, learnt_from, scored_on), and the fields of TrainConfig under their own
  names.
- epochs, one row per metric of an epoch of a trial: sweep, trial_id, epoch, metric, value. Epoch 0 has the values
  before the first step (NMI).
- predictions, one row per image on which a complete trial was scored: sweep, trial_id, key, label, prediction, correct,
  confidence.
"""

from __future__ import annotations

import dataclasses
import logging
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.study.selection import find_tied
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial
from trainer.config import field_types
from trainer.metric_names import metrics_by_epoch
from trainer.storage.files import publish
from trainer.storage.integrity import DamagedFile
from trainer.storage.run_results import read_predictions

log = logging.getLogger(__name__)

PROVENANCE = {
    "host": "Name of the machine that trained the trial.",
    "device": "Kind of device that trained the trial. Several are separated by semicolons.",
    "arithmetic": "Precision, attention kernel and engine that trained the trial.",
    "software": "Versions of the libraries that trained the trial.",
    "commit": "Git commit of the code that trained the trial, followed by + if files differed from it.",
    "lock": "Hash of the file requirements.lock beside the code.",
    "protocol": "How the task was split into training and test images.",
    "learnt_from": "Fingerprint, split and size of the images that the trial was trained on.",
    "scored_on": "Fingerprint, split and size of the images that the trial was scored on.",
}
"""Descriptions of the facts that a worker reports about a trial, by column."""
PROVENANCE_COLUMNS = tuple(PROVENANCE)


def _schema(columns: Iterable[tuple[str, pa.DataType, str]]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, metadata={"description": text}) for name, kind, text in columns])


def _config_type(hint: Any) -> pa.DataType:
    """Return the column type of a TrainConfig field. A field with several types becomes text.

    Text keeps the difference between 1 image and a share of 1.0.
    """
    options = typing.get_args(hint) or (hint,)
    kinds = {type(option) if isinstance(option, str) else option for option in options} - {type(None)}

    kind = kinds.pop() if len(kinds) == 1 else str
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(kind, pa.string())


SWEEP = ("sweep", pa.string(), "Name of the sweep.")
TRIAL_ID = ("trial_id", pa.string(), "Fingerprint of the TrainConfig of the trial.")

TRIALS = _schema(
    [
        SWEEP,
        ("study", pa.string(), "Key of the study within the sweep."),
        ("group", pa.string(), "Group of the task."),
        ("phase", pa.string(), "Phase of the trial: search or final."),
        ("number", pa.int64(), "Number of the trial within its study and phase, from 0."),
        TRIAL_ID,
        ("state", pa.string(), "State of the trial: waiting, running, complete, pruned or failed."),
        ("cause", pa.string(), "Kind of the failure, if the trial failed."),
        ("error", pa.string(), "Error of a failed trial in one sentence."),
        ("attempt", pa.int64(), "Number of times the trial was assigned to a worker."),
        ("seconds", pa.float64(), "Time that workers spent on the trial, in seconds."),
        (
            "score",
            pa.float64(),
            "Accuracy at the last epoch, 0..1: on val for search trials, on test for final trials.",
        ),
        (
            "chosen",
            pa.bool_(),
            "Whether the study chose the params of this search trial, or needs this final trial of the chosen params.",
        ),
        ("tied", pa.bool_(), "Whether it is not significantly worse on val than the study's best trial."),
        ("duplicate_of", pa.int64(), "Number of the earlier trial with the same config, whose outcome was copied."),
        *((name, pa.string(), text) for name, text in PROVENANCE.items()),
        *((name, _config_type(hint), f"Field {name} of TrainConfig.") for name, hint in field_types().items()),
    ]
)
EPOCHS = _schema(
    [
        SWEEP,
        TRIAL_ID,
        ("epoch", pa.int64(), "Number of the epoch, from 1; 0 for values before the first step."),
        ("metric", pa.string(), "Name of the metric as in MLflow, such as val/accuracy."),
        ("value", pa.float64(), "Value of the metric; accuracies are fractions 0..1."),
    ]
)
PREDICTIONS = _schema(
    [
        SWEEP,
        TRIAL_ID,
        ("key", pa.string(), "Name of the image within its task."),
        ("label", pa.int64(), "True class of the image."),
        ("prediction", pa.int64(), "Predicted class of the image."),
        ("correct", pa.bool_(), "Whether the prediction equals the label."),
        ("confidence", pa.float64(), "Softmax probability of the predicted class, 0..1."),
    ]
)


def export_studies(studies: Sequence[Study], trials: Callable[[str], str], folder: Path) -> tuple[list[Path], int]:
    """Write the three files. Each file appears when it is complete.

    Final trials of an earlier choice are exported too; their `chosen` is false.

    Args:
        studies: with the epochs of their trials.
        trials: returns the folder (path or URI) of a sweep's trials from the name of the sweep.
        folder: folder of the files; created if it does not exist.

    Returns:
        The files, and the number of complete trials whose predictions are missing or damaged. A damaged file is named
        in a warning.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)

    # Tables are made one study at a time, so that memory does not grow with the sweep.
    def tables(rows_of: Callable[[Study], list[dict[str, Any]]], schema: pa.Schema) -> Iterator[pa.Table]:
        for study in studies:
            yield pa.Table.from_pylist(rows_of(study), schema)

    absent: list[str] = []
    predictions = (table for study in studies for table in _predictions(study, trials(study.spec.name), absent))

    files = [
        _write(folder / "trials.parquet", TRIALS, tables(_trials, TRIALS)),
        _write(folder / "epochs.parquet", EPOCHS, tables(_epochs, EPOCHS)),
        _write(folder / "predictions.parquet", PREDICTIONS, predictions),
    ]
    return files, len(absent)


def trials_table(studies: Sequence[Study]) -> pa.Table:
    """Return a row for each trial, with the schema `TRIALS`."""
    return pa.Table.from_pylist([row for study in studies for row in _trials(study)], TRIALS)


def epochs_table(studies: Sequence[Study]) -> pa.Table:
    """Return a row for each metric of each epoch, with the schema `EPOCHS`. Load the studies with their epochs."""
    return pa.Table.from_pylist([row for study in studies for row in _epochs(study)], EPOCHS)


def _write(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> Path:
    """Write the tables to a draft beside the file, then rename it."""
    # A dot file in the same folder: the rename is atomic, and no reader takes it for the result.
    draft = path.with_name(f".{path.name}.part")
    try:
        with pq.ParquetWriter(draft, schema) as writer:
            for table in tables:
                writer.write_table(table)
        publish(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _all_trials(study: Study) -> list[Trial]:
    return [*study.search_table.trials, *study.final_table.trials]


def _trials(study: Study) -> list[dict[str, Any]]:
    """Return the rows of `trials`."""
    # `tied` includes the best trial itself.
    tied = {trial.trial_id for trial in find_tied(study.requested_search_trials)}

    chosen = {trial.trial_id for trial in study.requested_final_trials}
    if study.best is not None:
        chosen.add(study.best.trial_id)

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
            "tied": trial.trial_id in tied,
            "duplicate_of": trial.duplicate_of,
            **{name: trial.provenance.get(name) for name in PROVENANCE_COLUMNS},
            **{
                name: _convert(TRIALS.field(name).type, value)
                for name, value in dataclasses.asdict(trial.config).items()
            },
        }
        for trial in _all_trials(study)
    ]


def _convert(kind: pa.DataType, value: Any) -> Any:
    """Return the value as text if its column holds text."""
    return str(value) if value is not None and kind == pa.string() else value


def _epochs(study: Study) -> list[dict[str, Any]]:
    """Return the rows of `epochs`. A duplicate has the epochs of another trial, which are not repeated."""
    return [
        {"sweep": study.spec.name, "trial_id": trial.trial_id, "epoch": epoch, "metric": metric, "value": value}
        for trial in _all_trials(study)
        if trial.duplicate_of is None
        for epoch, metrics in metrics_by_epoch(trial.epochs).items()
        for metric, value in metrics.items()
    ]


def _predictions(study: Study, trials_folder: str, absent: list[str]) -> Iterator[pa.Table]:
    """Yield the predictions of each complete trial. Append to `absent` the trials whose file is missing or damaged."""
    for trial in _all_trials(study):
        if trial.score is None or trial.duplicate_of is not None:
            continue

        # Predictions may have been deleted to save space: the trial is counted, not refused.
        table = None
        try:
            table = read_predictions(f"{trials_folder}/{trial.trial_id}")
        except DamagedFile as error:
            log.warning("%s", error)
        if table is None:
            absent.append(trial.trial_id)
            continue

        for index, (name, value) in enumerate((("sweep", study.spec.name), ("trial_id", trial.trial_id))):
            table = table.add_column(index, name, pa.array([value] * len(table), pa.string()))
        # The writer refuses a table whose types differ from its schema.
        yield table.cast(PREDICTIONS)
