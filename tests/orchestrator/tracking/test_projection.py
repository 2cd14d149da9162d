"""One law: whatever a person did to MLflow or to the home, a synchronization makes MLflow what a fresh one would be."""

from __future__ import annotations

import copy
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from orchestrator.doctor.checks import check_services
from orchestrator.environment.home import Home, home_at
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Trial
from orchestrator.sweep.sweep import Sweep
from orchestrator.tracking.mlflow_locations import is_inside, local_path, snapshot, stale_locations
from orchestrator.tracking.mlflow_runs import open_runs
from orchestrator.tracking.mlflow_sync import SyncOutcome, sync_sweep
from orchestrator.tracking.mlflow_tracker import MlflowTracker
from tests.orchestrator.conftest import RAW_SPEC, Sptune, drive
from trainer.storage.files import write_bytes

NAME = "touched"


def small_spec() -> SweepSpec:
    raw = copy.deepcopy(RAW_SPEC) | {"name": NAME, "tasks": ["demo/digits"], "methods": ["linear"]}
    raw["space"] = {"lr": raw["space"]["lr"]}
    raw["fixed"]["epochs"] = 2
    raw["search"] |= {"trials": 2, "pruner": {"type": "none"}}
    raw["final"] = {"seeds": [42]}
    return parse_spec(raw, "a test")


def write_prompt(home: Home, trial: Trial) -> None:
    """Give a trial that starts the file that its run has among the artifacts."""
    write_bytes(f"{home.trials_folder(NAME)}/{trial.trial_id}/prompt.safetensors", trial.trial_id.encode())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """A home with a finished sweep and its MLflow, for tests to copy."""
    root = tmp_path_factory.mktemp("original")
    shutil.copy(empty_mlflow, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        home = home_at(str(root))
        database = StudyDatabase(home.database_url)
        tracker = MlflowTracker(open_runs(home, small_spec(), database.sweep_id(NAME)))
        sweep = Sweep.resume(small_spec(), database, tracker)
        drive(sweep, fail=lambda trial: write_prompt(home, trial))
        sweep.close()
        assert tracker.close() == 0
        database.close()
    shutil.copy(empty_mlflow, root / "fresh.db")
    return root


@pytest.fixture
def home(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(original, tmp_path / "copy")
    return home_at(str(tmp_path / "copy"))


@pytest.fixture(scope="module")
def fresh(original: Path, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> set[tuple[object, ...]]:
    """What MLflow has if nobody touched it."""
    root = tmp_path_factory.mktemp("fresh") / "home"
    shutil.copytree(original, root)
    shutil.copy(empty_mlflow, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        home = home_at(str(root))
        assert _sync(home).num_created == 4
        return projection(home)


def _sync(home: Home) -> SyncOutcome:
    database = StudyDatabase(home.database_url)
    try:
        return sync_sweep(home, database, small_spec())
    finally:
        database.close()


def client_of(home: Home) -> MlflowClient:
    return MlflowClient(tracking_uri=home.mlflow_uri)


def runs_of(home: Home, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    client = client_of(home)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [*client.search_runs(experiments, f"tags.sweep = '{NAME}'", view)]


def projection(home: Home) -> set[tuple[object, ...]]:
    """All that MLflow shows of the sweep; each run once, with its artifacts inside the home."""
    client = client_of(home)
    runs = runs_of(home)
    studies = {run.info.run_id: run.data.tags["study"] for run in runs if "study" in run.data.tags}
    shown: set[tuple[object, ...]] = set()
    for run in runs:
        folder = Path(local_path(run.info.artifact_uri))
        assert folder.is_relative_to(Path(home.root) / "mlartifacts")
        tags = run.data.tags
        entry = (
            run.info.run_name,
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            tags["mlflow.user"],
            tags.get("trial_id") or tags["study"],
            tags.get("state"),
            studies.get(tags.get("mlflow.parentRunId", "")),
            tuple(sorted({*history(client, run)})),
            tuple(sorted(run.data.params.items())),
            tuple(sorted(artifact.path for artifact in client.list_artifacts(run.info.run_id))),
        )
        assert entry not in shown, "one run a trial"
        shown.add(entry)
    return shown


def history(client: MlflowClient, run: Run) -> Iterator[tuple[str, int, float]]:
    """Every value of a run by metric and step."""
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            yield name, metric.step, metric.value


def delete(*phases: str) -> Callable[[Home], None]:
    def tamper(home: Home) -> None:
        for run in runs_of(home):
            if run.data.tags["phase"] in phases:
                client_of(home).delete_run(run.info.run_id)

    return tamper


def purge(*phases: str) -> Callable[[Home], None]:
    """What `mlflow gc` does to deleted runs."""

    def tamper(home: Home) -> None:
        delete(*phases)(home)
        store = client_of(home)._tracking_client.store
        for run in runs_of(home, ViewType.DELETED_ONLY):
            store._hard_delete_run(run.info.run_id)

    return tamper


def experiment_id(home: Home) -> str:
    experiment = client_of(home).get_experiment_by_name(NAME)
    assert experiment is not None
    return str(experiment.experiment_id)


def delete_experiment(home: Home) -> None:
    client_of(home).delete_experiment(experiment_id(home))


def purge_experiment(home: Home) -> None:
    number = experiment_id(home)
    purge("study", "search", "final")(home)
    client_of(home).delete_experiment(number)
    client_of(home)._tracking_client.store._hard_delete_experiment(number)


def rename_experiment(home: Home) -> None:
    client_of(home).rename_experiment(experiment_id(home), "of the paper")


def give_name_to_somebody_else(home: Home) -> None:
    rename_experiment(home)
    client = client_of(home)
    client.create_run(client.create_experiment(NAME), run_name="somebody else's", tags={"phase": "study"})


def lose_database(home: Home) -> None:
    # A new one with empty tables, as MLflow makes it.
    shutil.copy(Path(home.root) / "fresh.db", Path(home.root) / "mlflow.db")


def leave_second_runs(home: Home) -> None:
    """What a server leaves that did something and whose answers were lost."""
    client = client_of(home)
    for run in runs_of(home):
        kept = {name: text for name, text in run.data.tags.items() if not name.startswith("mlflow.")}
        client.create_run(run.info.experiment_id, tags=kept, run_name=run.info.run_name)


def cut_off(home: Home) -> None:
    """What a driver leaves that dies before it has logged an outcome."""
    for run in runs_of(home):
        client_of(home).update_run(run.info.run_id, status="RUNNING")


def forget(home: Home) -> None:
    """What an earlier version leaves: no tag tells which sweep a run or an experiment belongs to."""
    with sqlite3.connect(str(home.mlflow_file)) as connection:
        connection.execute("DELETE FROM tags WHERE key IN ('sweep_id', 'digest')")
        connection.execute("DELETE FROM experiment_tags WHERE key = 'sweep_id'")


def both(*tampers: Callable[[Home], None]) -> Callable[[Home], None]:
    def tamper(home: Home) -> None:
        for each in tampers:
            each(home)

    return tamper


TAMPERS: dict[str, Callable[[Home], None]] = {
    "nothing": lambda home: None,
    "a parent deleted": delete("study"),
    "children deleted": delete("search"),
    "all runs deleted": delete("study", "search", "final"),
    "a parent purged": purge("study"),
    "children purged": purge("final", "search"),
    "the experiment deleted": delete_experiment,
    "the experiment purged": purge_experiment,
    "the experiment renamed": rename_experiment,
    "the name given to somebody else": give_name_to_somebody_else,
    "the database lost": lose_database,
    "answers lost": leave_second_runs,
    "cut off": cut_off,
    "an earlier version": forget,
    "an earlier version, its parent deleted": both(forget, delete("study")),
    "an earlier version, its experiment renamed": both(forget, rename_experiment),
}


@pytest.mark.parametrize("what", TAMPERS)
def test_whatever_was_done_to_mlflow_a_sync_makes_it_whole(
    home: Home, fresh: set[tuple[object, ...]], what: str
) -> None:
    # Corrects the locations of the copy, as every command does.
    _sync(home)
    TAMPERS[what](home)
    outcome = _sync(home)
    assert (outcome.problem, outcome.num_left) == (None, 0)
    assert projection(home) == fresh
    second = _sync(home)
    done = (second.num_created, second.num_restored, second.num_removed, second.num_logged)
    assert done == (0, 0, 0, 0), "and once is enough"
    if what == "the name given to somebody else":
        others = client_of(home).search_runs([experiment_id(home)])
        assert [(run.info.run_name, run.info.status) for run in others] == [("somebody else's", "RUNNING")]


def test_a_launch_makes_whole_what_a_person_deleted_and_a_removed_trial_stays_removed(
    home: Home, sptune: Sptune
) -> None:
    gone = next(run.data.tags["trial_id"] for run in runs_of(home) if run.data.tags["phase"] == "search")
    assert sptune("rm", NAME, "--trial", gone, "--yes", "--home", home.root)[0] == 0
    delete_experiment(home)
    # All of its runs come back with it, but not the one that was removed here.
    code, said, _ = sptune("sync", NAME, "--home", home.root)
    assert code == 0 and "MLflow has everything." in said
    runs = runs_of(home)
    assert len(runs) == 4
    (waiting,) = (run for run in runs if run.data.tags.get("trial_id") == gone)
    assert (waiting.info.status, waiting.data.metrics) == ("SCHEDULED", {}), "it waits to be run again"


def test_a_database_that_is_damaged_is_told_at_once_with_the_way_out(home: Home) -> None:
    assert home.mlflow_file is not None
    home.mlflow_file.write_bytes(b"no database" * 1000)
    start = time.monotonic()
    database = StudyDatabase(home.database_url)
    runs = open_runs(home, small_spec(), database.sweep_id(NAME))
    tracker = MlflowTracker(runs, patience_s=60)
    Sweep.resume(small_spec(), database, tracker)
    tracker.close()
    assert time.monotonic() - start < 30, "waiting would not repair it"
    assert tracker.problem is not None and "damaged; move the file away" in tracker.problem


class Deaf(MlflowClient):
    """A client of a server that does everything, and whose first answer to each request for something new is lost."""

    def __init__(self, uri: str) -> None:
        super().__init__(tracking_uri=uri)
        self.lost: set[str] = set()

    def lose(self, what: str) -> None:
        if what not in self.lost:
            self.lost.add(what)
            raise MlflowException("API request failed with exception Connection aborted")

    def create_experiment(self, *args: Any, **options: Any) -> str:
        experiment = super().create_experiment(*args, **options)
        self.lose("experiment")
        return experiment

    def create_run(self, *args: Any, **options: Any) -> Run:
        run = super().create_run(*args, **options)
        self.lose(str(options["run_name"]))
        return run

    def set_terminated(self, run_id: str, *args: Any, **options: Any) -> None:
        super().set_terminated(run_id, *args, **options)
        self.lose(f"end of {run_id}")


@pytest.mark.slow
def test_a_server_whose_answers_are_lost_gets_one_run_a_trial_and_none_stays_running(
    home: Home, fresh: set[tuple[object, ...]]
) -> None:
    lose_database(home)
    database = StudyDatabase(home.database_url)
    runs = open_runs(home, small_spec(), database.sweep_id(NAME))
    client = Deaf(home.mlflow_uri)
    runs._experiment.client = client
    tracker = MlflowTracker(runs)
    Sweep.resume(small_spec(), database, tracker)
    assert (tracker.close(), tracker.problem) == (0, None)
    assert len(client.lost) >= 9, "of the experiment, of four runs and their ends"
    assert projection(home) == fresh
    assert len(runs_of(home, ViewType.ALL)) == 4


def files_in(folder: Path) -> set[tuple[str, int]]:
    return {(str(file.relative_to(folder)), file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


def test_what_is_removed_in_a_copy_of_a_home_stays_in_the_original(home: Home, original: Path, sptune: Sptune) -> None:
    before = files_in(original)
    code, _, complaint = sptune("rm", NAME, "--yes", "--home", home.root)
    assert (code, complaint) == (0, "")
    assert files_in(original) == before
    assert not [file for file in (Path(home.root) / "mlartifacts").rglob("*") if file.is_file()]


@pytest.mark.parametrize("name", ["two words#", "100%", "a%20b?", "mlartifacts größe"])
def test_a_home_that_was_moved_finds_its_artifacts_and_writes_new_ones_into_itself(
    home: Home, fresh: set[tuple[object, ...]], tmp_path: Path, name: str
) -> None:
    _sync(home)
    old = Path(home.root)
    old.rename(tmp_path / name)
    moved = home_at(str(tmp_path / name))
    (finding,) = (found for found in check_services(moved) if found.subject == "MLflow")
    assert (finding.verdict, str(old) in finding.detail) == ("warning", True), "doctor names the old place"
    delete("final")(moved)
    _sync(moved)
    assert projection(moved) == fresh
    assert not old.exists()
    assert stale_locations(moved) == []


def test_a_home_that_cannot_be_written_is_shown_from_a_copy_that_finds_its_artifacts(
    home: Home, original: Path, tmp_path: Path
) -> None:
    assert home.mlflow_file is not None
    before = home.mlflow_file.read_bytes()
    (tmp_path / "shown").mkdir()
    client = MlflowClient(tracking_uri=snapshot(home, tmp_path / "shown"))
    experiment = client.get_experiment_by_name(NAME)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 4
    for run in runs:
        assert is_inside(run.info.artifact_uri, str(home.mlflow_artifacts)), "not in the home that it was copied from"
        assert client.list_artifacts(run.info.run_id)
    assert home.mlflow_file.read_bytes() == before, "and nothing is written"


@pytest.mark.parametrize("name", ["two words", "a#b", "a?b", "100%", "a%3Fb", "größe", "a;b", "a=b", "a&b+c"])
def test_mlflow_reads_the_uri_of_a_folder_as_we_do(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    uri = f"{folder.as_uri()}/mlartifacts"
    assert local_path(uri) == url2pathname(local_path(uri)) or "%" in name
    source = tmp_path / "a.txt"
    source.write_text("a")
    LocalArtifactRepository(uri).log_artifact(str(source))
    assert (folder / "mlartifacts" / "a.txt").read_text() == "a"
    assert Path(local_path(uri)) == folder / "mlartifacts"
    assert is_inside(f"{uri}/sweep/1/artifacts", uri)
    assert not is_inside(f"{tmp_path.as_uri()}/other/1", uri)
    assert not is_inside(f"{uri}/../other", uri)
