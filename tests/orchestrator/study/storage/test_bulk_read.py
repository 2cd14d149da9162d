"""Trials read straight from Optuna's tables are those that Optuna's own interface tells of, and nothing is written."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from orchestrator.errors import UserError
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.bulk_read import STUDIES_PER_QUERY, StoredTrial, load_trials
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.stored_names import HISTORY
from orchestrator.study.study import Study, load_studies
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from tests.orchestrator.conftest import drive, new_sweep

AWKWARD = {
    "text": "it's `50 %` \\ \"ü\" — 字 'history'",
    "deep": {"a": [1, 2.5, None, True, {"b": []}], "": {}},
    "long": "x" * 5000,
    "small": 5e-324,
    "none": None,
    "number": 10**17 + 1,
}


@pytest.fixture
def storage(record_url: str) -> RDBStorage:
    return RDBStorage(record_url)


def as_rows(storage: RDBStorage, study_id: int) -> list[StoredTrial]:
    """A study's trials by Optuna's interface."""
    return [
        StoredTrial(t._trial_id, t.number, t.state, t.value, t.params, t.user_attrs, t.system_attrs)
        for t in storage.get_all_trials(study_id)
    ]


def new_study(storage: RDBStorage, name: str) -> int:
    return storage.create_new_study([StudyDirection.MAXIMIZE], name)


def dump(file: Path) -> list[str]:
    """All that a database holds."""
    with sqlite3.connect(file) as connection:
        return [*connection.iterdump()]


def kinds(value: Any) -> Any:
    """A value's types all the way down: 1 is no 1.0, and True no 1."""
    if isinstance(value, dict):
        return {name: kinds(entry) for name, entry in value.items()}
    return [kinds(entry) for entry in value] if isinstance(value, list) else type(value)


def test_params_come_back_with_their_types_whatever_their_kind(storage: RDBStorage) -> None:
    study_id = new_study(storage, "all kinds")
    space = {
        "lr": FloatDistribution(1e-9, 1.0, log=True),
        "step": FloatDistribution(0.0, 1.0, step=0.25),
        "length": IntDistribution(1, 200, log=True),
        "even": IntDistribution(0, 10, step=2),
        "init": CategoricalDistribution(["random", "mean_pool", "5 per class"]),
        "images": CategoricalDistribution([1, 0.5, 1.5, "all", None, True]),
    }
    for params in (
        {"lr": 1e-9, "step": 0.25, "length": 1, "even": 0, "init": "random", "images": 1},
        {"lr": 0.1 + 0.2, "step": 1.0, "length": 200, "even": 10, "init": "5 per class", "images": 1.5},
        {"lr": 1.0, "images": None},  # the others are conditional
        {"length": 7, "images": "all"},
        {},
    ):
        own = {name: space[name] for name in params}
        trial = create_trial(value=0.5, params=params, distributions=own)
        storage.create_new_trial(study_id, trial)
    found = load_trials(storage, [study_id])[study_id]
    assert found == as_rows(storage, study_id)
    assert [kinds(t.params) for t in found] == [kinds(t.params) for t in storage.get_all_trials(study_id)]
    assert [[*t.params] for t in found] == [[*t.params] for t in storage.get_all_trials(study_id)], "in their order"


def test_states_values_and_attributes_are_those_of_optuna(storage: RDBStorage) -> None:
    study_id = new_study(storage, "all states")
    for state in OptunaState:
        done = state in (OptunaState.COMPLETE, OptunaState.PRUNED)
        for value in (0.0, 1.0, 0.1 + 0.2, 1e-300) if done else (None,):
            trial = create_trial(state=state, value=value, user_attrs=AWKWARD, system_attrs={"note": AWKWARD})
            storage.create_new_trial(study_id, trial)
    storage.create_new_trial(study_id, create_trial(state=OptunaState.PRUNED, intermediate_values={1: 0.3}))
    found = load_trials(storage, [study_id])[study_id]
    assert found == as_rows(storage, study_id)
    assert {t.state for t in found} == {*OptunaState}
    assert [t.number for t in found] == [*range(len(found))]
    assert all(kinds(t.user) == kinds(AWKWARD) for t in found[:-1])
    assert found[-1].value is None and found[-1].user == {}


def test_numbers_that_json_does_not_know_come_back_too(storage: RDBStorage) -> None:
    study_id = new_study(storage, "nan")
    trial = create_trial(value=1.0, user_attrs={"loss": [math.inf, -math.inf]}, system_attrs={"loss": math.nan})
    storage.create_new_trial(study_id, trial)
    (found,) = load_trials(storage, [study_id])[study_id]
    assert found.user == {"loss": [math.inf, -math.inf]}
    assert math.isnan(found.system["loss"])


def test_an_empty_study_has_no_trials_and_no_study_no_entry(storage: RDBStorage) -> None:
    empty, full = new_study(storage, "empty"), new_study(storage, "full")
    storage.create_new_trial(full)
    assert load_trials(storage, [empty]) == {empty: []}
    assert [*load_trials(storage, [full, empty])] == [full, empty], "in the order asked for"
    assert load_trials(storage, []) == {}
    assert load_trials(storage, [10**6]) == {10**6: []}


def test_one_attribute_can_be_left_out_and_no_other(storage: RDBStorage) -> None:
    study_id = new_study(storage, "without")
    attributes = {"history": 1, "history2": 2, "came": 3, "History": 4}
    storage.create_new_trial(study_id, create_trial(value=1.0, user_attrs=attributes, system_attrs={"note": 5}))
    (found,) = load_trials(storage, [study_id], without="history")[study_id]
    assert found.user == {"history2": 2, "came": 3, "History": 4}
    assert found.system == {"note": 5}


def test_more_studies_than_one_query_takes_keep_their_trials_apart(storage: RDBStorage) -> None:
    count = 2 * STUDIES_PER_QUERY + 3
    with storage.engine.begin() as connection:  # through Optuna each would take milliseconds
        for table, rows in (
            ("studies", [{"study_id": i, "study_name": f"study {i}"} for i in range(1, count + 1)]),
            ("trials", [{"trial_id": i, "number": 0, "study_id": i, "state": "RUNNING"} for i in range(1, count + 1)]),
            (
                "trial_user_attributes",
                [{"trial_id": i, "key": "own", "value_json": f"{i}"} for i in range(1, count + 1)],
            ),
        ):
            names = ", ".join(rows[0])
            values = ", ".join(f":{name}" for name in rows[0])
            connection.execute(sqlalchemy.text(f"INSERT INTO {table} ({names}) VALUES ({values})"), rows)
    asked = [*range(count, 0, -1)]
    found = load_trials(storage, asked)
    assert [*found] == asked
    assert {study: [trial.user for trial in trials] for study, trials in found.items()} == {
        study: [{"own": study}] for study in asked
    }
    assert found[7] == as_rows(storage, 7)


def test_reading_is_a_handful_of_queries_however_many_trials(storage: RDBStorage) -> None:
    studies = [new_study(storage, f"study {place}") for place in range(4)]
    for study_id in studies:
        for _ in range(5):
            storage.create_new_trial(study_id, create_trial(value=1.0, user_attrs={"a": 1}))
    asked: list[str] = []
    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    load_trials(storage, studies)
    assert len(asked) == 5
    assert all(query.startswith("SELECT") for query in asked), "and none of them writes"


# A sweep's own studies


@pytest.fixture
def conditional(raw_spec: dict[str, Any]) -> SweepSpec:
    """A spec with a param of every kind, one of them conditional, and a pruner that leaves notes."""
    raw_spec["space"] |= {
        "weight_decay": {"type": "float", "low": 0.0, "high": 1.0},
        "batch_size": {"type": "int", "low": 2, "high": 32, "log": True},
        "init_images": {"type": "choice", "values": [1, 0.5], "when": {"prompt_init": "mean_pool"}},
    }
    return parse_spec(raw_spec, "a test")


def fail(trial: Trial) -> Failure | None:
    """Every third trial fails, one way or another."""
    if trial.number % 3 != 1:
        return None
    return Failure(error=f"RuntimeError: {AWKWARD['text']}\n\ntrace", cause=FailureCause.DIVERGED, seconds=1.5)


def trials_of(studies: list[Study]) -> list[Trial]:
    return [trial for study in studies for trial in (*study.search_table.trials, *study.final_table.trials)]


@pytest.mark.parametrize("events", [0, 1, 40, 10**6])
def test_a_record_opened_again_is_what_the_sweep_had_in_memory(
    events: int, conditional: SweepSpec, record_url: str
) -> None:
    sweep = new_sweep(conditional, record_url)
    drive(sweep, events=events, workers=3, fail=fail)
    sweep.close()
    kept = trials_of(sweep.studies)
    read = trials_of(load_studies(conditional, StudyDatabase(record_url)))
    assert read == kept
    for ours, theirs in zip(kept, read, strict=True):
        assert kinds(ours.params) == kinds(theirs.params)
        assert kinds(ours.config) == kinds(theirs.config)
    if events > 1000:
        assert {trial.state for trial in read} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED}
        assert 0 < sum("init_images" in trial.params for trial in read) < len(read), "some have the conditional one"


def test_without_epochs_all_else_of_a_trial_is_the_same(conditional: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(conditional, record_url)
    drive(sweep, events=150, workers=2, fail=fail)
    sweep.close()
    whole = load_studies(conditional, StudyDatabase(record_url))
    short = load_studies(conditional, StudyDatabase(record_url), epochs=False)
    for full, brief in zip(trials_of(whole), trials_of(short), strict=True):
        assert brief.epochs == ()
        for name in Trial.__dataclass_fields__:
            if name not in ("epochs", "sampler_attrs"):
                assert getattr(brief, name) == getattr(full, name), name
        if full.state is TrialState.COMPLETE:
            assert brief.last_metrics["train/loss"] == full.epochs[-1]["train/loss"]
            assert brief.score == full.epochs[-1][f"{full.config.eval_split}/accuracy"]
    for one, other in zip(whole, short, strict=True):
        assert (one.best is None) == (other.best is None)
        if one.best is not None and other.best is not None:
            assert one.best.trial_id == other.best.trial_id
        assert [t.trial_id for t in one.requested_final_trials] == [t.trial_id for t in other.requested_final_trials]
        assert one.digest == other.digest


def test_facts_are_there_with_and_without_epochs(conditional: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(conditional, record_url)
    trial = sweep.next_trial()
    assert trial is not None
    for epoch in range(1, 10):
        facts = {"device": "x86", "correct": "3:oA=="} if epoch == 9 else {"host": "here"}
        sweep.on_epoch(trial.trial_id, epoch, {"val/accuracy": epoch / 10, f"only/{epoch}": 1.0}, facts)
    for epochs in (True, False):
        (found,) = trials_of(load_studies(conditional, StudyDatabase(record_url), epochs=epochs))
        assert found.provenance == {"host": "here", "device": "x86", "correct": "3:oA=="}
        assert found.last_metrics == {"val/accuracy": 0.9, **{f"only/{epoch}": 1.0 for epoch in range(1, 10)}}
        assert found.score == 0.9


@pytest.mark.parametrize("epochs", [True, False])
def test_looking_writes_nothing(epochs: bool, conditional: SweepSpec, record_url: str, tmp_path: Path) -> None:
    sweep = new_sweep(conditional, record_url)
    drive(sweep, events=60, fail=fail)
    before = dump(tmp_path / "studies.db")
    for study in load_studies(conditional, StudyDatabase(record_url), epochs=epochs):
        study.summary()
    assert dump(tmp_path / "studies.db") == before


def test_optunas_own_interface_makes_sense_of_the_record(conditional: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(conditional, record_url)
    drive(sweep, fail=fail)
    storage = RDBStorage(record_url)
    names = {study.study_name: study._study_id for study in storage.get_all_studies()}
    for study in sweep.studies:
        for record in (study.search_table, study.final_table):
            study_id = names[f"{conditional.name}: {study.plan.key} {record.phase}"]
            theirs: list[FrozenTrial] = storage.get_all_trials(study_id)
            assert load_trials(storage, [study_id])[study_id] == as_rows(storage, study_id)
            assert [(t.number, t.params) for t in theirs] == [(t.number, t.params) for t in record.trials]
            assert all(len(t.user_attrs[HISTORY]["epochs"]) == len(ours.epochs)
                       for t, ours in zip(theirs, record.trials, strict=True) if ours.epochs)  # fmt: skip


def test_an_id_that_could_name_another_folder_is_refused(spec: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep, events=1)
    with sqlite3.connect(record_url.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE trial_user_attributes SET value_json = '\"../../x\"' WHERE key = 'trial_id'")
    with pytest.raises(UserError, match=r"tampered with: '../../x' in demo/digits"):
        new_sweep(spec, record_url)
