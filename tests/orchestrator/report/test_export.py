"""The three Parquet files: one documented schema for all sweeps, and everything in the study database, once."""

from __future__ import annotations

import copy
import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.report import export as module
from orchestrator.report.export import EPOCHS, PREDICTIONS, PROVENANCE_COLUMNS, TRIALS, export_studies
from orchestrator.spec.loader import parse_spec
from orchestrator.study.selection import find_tied, pack_correct
from orchestrator.study.study import Study
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.sweep import Sweep
from tests.orchestrator.conftest import RAW_SPEC, Sptune, curve, new_sweep
from trainer.config import TrainConfig, field_types

FILES = {"trials": TRIALS, "epochs": EPOCHS, "predictions": PREDICTIONS}
IMAGES = 40


def fail(trial: Trial) -> Failure | None:
    if trial.phase == "search" and trial.number == 1:
        return Failure(cause=FailureCause.DIVERGED, error='TrainingDiverged: "nan", 50 %\n\nthe trace', seconds=2.0)
    return None


def correct_of(trial: Trial) -> list[bool]:
    return [(trial.number + index) % 3 > 0 for index in range(IMAGES)]


def predictions_of(trial: Trial) -> bytes:
    correct = correct_of(trial)
    columns = {
        "key": [f"{index:05d}" for index in range(IMAGES)],
        "label": [3] * IMAGES,
        "prediction": [3 if is_right else 4 for is_right in correct],
        "correct": correct,
        "confidence": [1 / (index + 1) for index in range(IMAGES)],
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def run(sweep: Sweep, trials: Path, events: int = 10**6) -> None:
    """Run trials one after another, each with facts and, when it is scored, its predictions."""
    while events and (trial := sweep.next_trial()) is not None:
        if (failure := fail(trial)) is not None:
            sweep.on_failure(trial.trial_id, failure)
            continue
        for epoch, metrics in enumerate(curve(trial.config), start=1):
            facts = {"host": "node7", "device": "x86_64"}
            if epoch == trial.config.epochs:
                facts |= {"scored_on": "aaa/test", "correct": pack_correct(correct_of(trial))}
                (trials / trial.trial_id).mkdir(parents=True, exist_ok=True)
                (trials / trial.trial_id / "predictions.parquet").write_bytes(predictions_of(trial))
            events -= 1
            if not sweep.on_epoch(trial.trial_id, epoch, metrics | {"epoch/seconds": 0.1}, facts) or not events:
                break


def raw(raw_spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a spec of few short trials; some of them repeat a config, and some are pruned."""
    space = {"prompt_length": raw_spec["space"]["prompt_length"], "prompt_init": raw_spec["space"]["prompt_init"]}
    space["init_images"] = {"type": "choice", "values": [1, 0.5], "when": {"prompt_init": "mean_pool"}}
    pruner = {"type": "asha", "min_epochs": 1, "reduction": 2}
    search = {"trials": 8, "sampler": "random", "max_concurrent": 1, "pruner": pruner}
    fixed = {"epochs": 3, "warmup_epochs": 0}
    return raw_spec | {"fixed": fixed, "space": space, "search": search, "methods": ["spt_deep"]} | changes


@pytest.fixture(scope="module")
def sweeps_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trials of the sweep `small`."""
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def studies(sweeps_folder: Path) -> list[Study]:
    sweep = new_sweep(parse_spec(raw(copy.deepcopy(RAW_SPEC)), "a test"), f"sqlite:///{sweeps_folder / 'studies.db'}")
    run(sweep, sweeps_folder / "small")
    assert sweep.is_done
    return sweep.studies


@pytest.fixture
def write(studies: list[Study], sweeps_folder: Path, tmp_path: Path) -> Callable[..., dict[str, list[dict[str, Any]]]]:
    """The rows of the three files."""

    def written(some_studies: list[Study] | None = None) -> dict[str, list[dict[str, Any]]]:
        files, _ = export_studies(some_studies or studies, lambda sweep: str(sweeps_folder / sweep), tmp_path / "out")
        assert [file.name for file in files] == [f"{name}.parquet" for name in FILES]
        return {name: pq.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist() for name in FILES}

    return written


def every(studies: list[Study]) -> list[Trial]:
    return [trial for study in studies for trial in (*study.search_table.trials, *study.final_table.trials)]


def test_each_column_has_a_description_and_is_listed_in_the_module(
    studies: list[Study], sweeps_folder: Path, tmp_path: Path
) -> None:
    export_studies(studies, lambda sweep: str(sweeps_folder / sweep), tmp_path / "out")
    for name, schema in FILES.items():
        stored = pq.read_schema(tmp_path / "out" / f"{name}.parquet")
        assert stored.equals(schema, check_metadata=True)
        for field in stored:
            assert field.metadata[b"description"].decode().strip(), field.name
    assert module.__doc__ is not None
    for name, schema in FILES.items():
        documented = re.search(rf"- {name}, (.*?)(?=\n- |\Z)", module.__doc__, re.DOTALL)
        assert documented is not None
        columns = [column for column in schema.names if column not in field_types()]
        assert [column for column in columns if not re.search(rf"\b{column}\b", documented[1])] == []
    assert set(field_types()) <= {*TRIALS.names}, "every field of TrainConfig"
    assert len({*TRIALS.names}) == len(TRIALS.names)


def test_trials_are_those_of_the_study_database(studies: list[Study], write: Callable[..., dict[str, Any]]) -> None:
    rows, trials = write()["trials"], every(studies)
    assert [(row["study"], row["phase"], row["number"]) for row in rows] == [
        (t.study, t.phase, t.number) for t in trials
    ]
    for row, trial in zip(rows, trials, strict=True):
        for name in ("trial_id", "score", "attempt", "seconds", "duplicate_of"):
            assert row[name] == getattr(trial, name), name
        assert (row["sweep"], row["group"], row["state"]) == ("small", "demo", trial.state.value)
        assert row["cause"] == (trial.cause.value if trial.cause else None)
        assert row["error"] == (trial.error_summary or None), "one sentence, without the trace"
        assert {name: row[name] for name in PROVENANCE_COLUMNS} == {
            name: trial.provenance.get(name) for name in PROVENANCE_COLUMNS
        }
    assert {row["state"] for row in rows} == {"complete", "pruned", "failed"}
    assert any(row["duplicate_of"] is not None for row in rows), "a small space is drawn from twice"


def test_the_config_of_a_trial_can_be_rebuilt_from_its_row(write: Callable[..., dict[str, Any]]) -> None:
    for row in write()["trials"]:
        values = {name: row[name] for name in field_types()}
        for name in ("init_images", "train_size"):  # text, for 1 image is no share of 1.0
            values[name] = float(values[name]) if "." in values[name] else int(values[name])
        assert TrainConfig(**values).fingerprint() == row["trial_id"]


def test_chosen_and_tied_agree_with_the_study(studies: list[Study], write: Callable[..., dict[str, Any]]) -> None:
    rows = write()["trials"]
    for study in studies:
        study_rows = [row for row in rows if row["study"] == study.plan.key]
        assert study.best is not None
        chosen = {row["trial_id"] for row in study_rows if row["chosen"]}
        assert chosen == {study.best.trial_id, *(trial.trial_id for trial in study.requested_final_trials)}
        assert {row["trial_id"] for row in study_rows if row["tied"]} == {
            t.trial_id for t in find_tied(study.requested_search_trials)
        }
        assert not any(row["tied"] for row in study_rows if row["phase"] == "final")


def test_final_trials_of_an_earlier_choice_are_not_chosen(
    raw_spec: dict[str, Any], sweeps_folder: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    run(new_sweep(parse_spec(raw(raw_spec, tasks=["demo/digits"]), "before"), url), tmp_path / "trials")
    raw_spec["final"] = {"seeds": [42, 44], "measure_peeking": True}
    sweep = new_sweep(parse_spec(raw(raw_spec, tasks=["demo/digits"]), "after"), url)
    run(sweep, tmp_path / "trials")
    files, _ = export_studies(sweep.studies, lambda _: str(tmp_path / "trials"), tmp_path / "out")
    finals = [row for row in pq.read_table(files[0]).to_pylist() if row["phase"] == "final"]
    assert {row["measure_peeking"]: row["chosen"] for row in finals} == {False: False, True: True}


def test_epochs_are_those_of_the_study_database_each_trial_once(
    studies: list[Study], write: Callable[..., dict[str, Any]]
) -> None:
    exported = [(row["trial_id"], row["epoch"], row["metric"], row["value"]) for row in write()["epochs"]]
    expected = [
        (trial.trial_id, epoch, metric, value)
        for trial in every(studies)
        if trial.duplicate_of is None
        for epoch, metrics in enumerate(trial.epochs, start=1)
        for metric, value in metrics.items()
    ]
    assert exported == expected
    assert len({row[:3] for row in exported}) == len(exported), "no value twice"


def test_values_before_the_first_step_are_those_of_epoch_0(
    studies: list[Study], write: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = studies[0].search_table.trials[0]
    measured = {"initial/nmi/layer_00": 0.25, "nmi/layer_00": 0.5}
    # The studies are shared by all tests: the values are there for this test alone.
    for name, value in measured.items():
        monkeypatch.setitem(trial.epochs[0], name, value)
    rows = [row for row in write()["epochs"] if "nmi" in row["metric"]]
    assert [(row["trial_id"], row["epoch"], row["metric"], row["value"]) for row in rows] == [
        (trial.trial_id, 0, "nmi/layer_00", 0.25),
        (trial.trial_id, 1, "nmi/layer_00", 0.5),
    ]


def test_predictions_are_those_of_complete_trials_each_once(
    studies: list[Study], write: Callable[..., dict[str, Any]]
) -> None:
    rows = write()["predictions"]
    complete = [t for t in every(studies) if t.state is TrialState.COMPLETE and t.duplicate_of is None]
    assert list(dict.fromkeys(row["trial_id"] for row in rows)) == [trial.trial_id for trial in complete]
    for trial in complete:
        trial_rows = [row for row in rows if row["trial_id"] == trial.trial_id]
        expected = pq.read_table(io.BytesIO(predictions_of(trial))).to_pylist()
        assert trial_rows == [{"sweep": "small", "trial_id": trial.trial_id} | row for row in expected]


def test_missing_predictions_are_left_out(
    studies: list[Study], write: Callable[..., dict[str, Any]], sweeps_folder: Path
) -> None:
    missing_id = studies[0].requested_final_trials[0].trial_id
    whole = write()["predictions"]
    file = sweeps_folder / f"small/{missing_id}/predictions.parquet"
    file.rename(sweeps_folder / "kept")
    left = write()["predictions"]
    (sweeps_folder / "kept").rename(file)
    assert left == [row for row in whole if row["trial_id"] != missing_id]


def test_a_sweep_without_trials_has_empty_files_of_the_same_schema(
    raw_spec: dict[str, Any], write: Callable[..., dict[str, Any]], sweeps_folder: Path, tmp_path: Path
) -> None:
    sweep = new_sweep(parse_spec(raw(raw_spec, name="new"), "a test"), f"sqlite:///{tmp_path / 'other.db'}")
    assert write(sweep.studies) == {name: [] for name in FILES}
    run(sweep, sweeps_folder / "new", events=1)
    sweep.close()
    rows = write(sweep.studies)
    assert [row["state"] for row in rows["trials"]] == ["waiting"]
    assert {row["epoch"] for row in rows["epochs"]} == {1} and rows["predictions"] == []


def test_several_sweeps_go_into_one_file_by_name(
    raw_spec: dict[str, Any],
    write: Callable[..., dict[str, Any]],
    studies: list[Study],
    sweeps_folder: Path,
    tmp_path: Path,
) -> None:
    other_spec = parse_spec(raw(raw_spec, name="other", train_sizes=["5 per class"]), "a test")
    other_sweep = new_sweep(other_spec, f"sqlite:///{tmp_path / 'other.db'}")
    run(other_sweep, sweeps_folder / "other")
    alone = write()
    both = write([*studies, *other_sweep.studies])
    for name in FILES:
        assert [row for row in both[name] if row["sweep"] == "small"] == alone[name]
        assert {row["sweep"] for row in both[name]} == {"small", "other"}
    assert {row["train_size"] for row in both["trials"]} == {"1.0", "5 per class"}


def test_two_exports_are_the_same_bytes_and_leave_no_other_files(
    studies: list[Study], write: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    write()
    first = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    write()
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == first
    assert {*first} == {f"{name}.parquet" for name in FILES}


# The command


@pytest.fixture
def home(raw_spec: dict[str, Any], tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    sweep = new_sweep(parse_spec(raw(raw_spec, tasks=["demo/digits"]), "a test"), f"sqlite:///{folder / 'studies.db'}")
    run(sweep, folder / "sweeps/small/trials")
    return folder


def test_the_command_names_the_files_it_wrote(
    home: Path, sptune: Sptune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, error = sptune("export", "small", "--home", home)
    assert (status, error) == (0, "")
    assert out.splitlines() == [f"small-export/{name}.parquet" for name in FILES]
    assert all(pq.read_table(tmp_path / file).num_rows > 0 for file in out.splitlines())
    status, out, _ = sptune("export", "small", "--home", home, "--out", tmp_path / "there/and/deeper")
    assert out.splitlines() == [f"{tmp_path}/there/and/deeper/{name}.parquet" for name in FILES]


@pytest.mark.parametrize("command", ["export", "figures"])
def test_a_file_in_place_of_the_folder_is_refused_in_one_sentence(
    command: str, home: Path, sptune: Sptune, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("mine")
    for out in (tmp_path / "taken", tmp_path / "taken/below"):
        status, _, error = sptune(command, "small", "--home", home, "--out", out)
        assert status == 2
        assert re.fullmatch(rf"error: {re.escape(str(out))}: (File exists|Not a directory)\.\n", error)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_file_that_cannot_be_written_is_named(home: Path, sptune: Sptune, tmp_path: Path) -> None:
    (tmp_path / "out/.epochs.parquet.part").mkdir(parents=True)
    status, _, error = sptune("export", "small", "--home", home, "--out", tmp_path / "out")
    assert status == 2
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    assert f"{tmp_path}/out" in error and "None" not in error


def test_an_unknown_sweep_is_refused_in_one_sentence(home: Path, sptune: Sptune) -> None:
    status, _, error = sptune("export", "smal", "--home", home)
    assert status == 2 and "did you mean 'small'?" in error and len(error.splitlines()) == 1


def test_columns_have_the_types_of_the_config_fields() -> None:
    kinds = {field.name: field.type for field in TRIALS if field.name in field_types()}
    assert kinds["train_size"] == kinds["init_images"] == pa.string()
    assert kinds["image_size"] == kinds["prompt_length"] == kinds["epochs"] == pa.int64()
    assert kinds["ema_decay"] == kinds["lr"] == pa.float64()
    assert kinds["nmi"] == pa.bool_()
    assert {field.name for field in dataclasses.fields(TrainConfig)} == {*kinds}
