"""Reports that several test modules read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.report.blocks import Block
from orchestrator.report.sections import build_sections
from orchestrator.study.study import Study
from orchestrator.study.trial import Failure, FailureCause, Trial
from tests.orchestrator.report.formats import AWKWARD
from tests.orchestrator.report.reports import FGVC, NATURAL, VTAB, chance, run, small, table_blocks


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Return URLs of new study databases."""
    return lambda: f"sqlite:///{tmp_path_factory.mktemp('studies') / 'studies.db'}"


@pytest.fixture(scope="module")
def plain(fresh: Callable[[], str]) -> list[Study]:
    """The studies of SMALL, without failures."""
    return run(small(), fresh())


@pytest.fixture(scope="module")
def natural(fresh: Callable[[], str]) -> list[Study]:
    """Studies of all tasks of one group."""
    return run(small(tasks=NATURAL), fresh())


@pytest.fixture(scope="session")
def wide(fresh: Callable[[], str]) -> list[Block]:
    """A report over 24 tasks."""
    return build_sections(
        run(
            small(tasks=[*VTAB, *FGVC], search={"trials": 1}),
            fresh(),
            metrics=lambda trial: {"peeking/gain": chance(trial.trial_id) / 10},
        )
    )


@pytest.fixture(scope="session")
def blocks(fresh: Callable[[], str]) -> list[Block]:
    """A report with every section, and an error message that each format must escape."""

    def fail(trial: Trial) -> Failure | None:
        broken = (trial.phase, trial.config.task, trial.config.seed) == ("final", "vtab/dtd", 44)
        return Failure(cause=FailureCause.ERROR, error=f"OSError: {AWKWARD[0]}\ntrace") if broken else None

    def metrics(trial: Trial) -> dict[str, float]:
        return {"train/images": 1000 * float(trial.config.train_size), "peeking/gain": 0.01, "learnable/share": 0.001}

    def facts(trial: Trial) -> dict[str, str]:
        return {"scored_on": "aaa/test", "protocol": "official_test", "device": "x86_64", "software": "torch 2_1"}

    report = build_sections(run(small(train_sizes=[0.5, 1.0]), fresh(), fail=fail, metrics=metrics, facts=facts))
    assert len(table_blocks(report)) == 6
    return report
