"""The check before a launch: everything that a sweep needs is there before anything is written or started."""

from __future__ import annotations

from orchestrator.environment.home import Home
from orchestrator.environment.requirements import check_requirements, open_studies
from orchestrator.errors import SpecError
from orchestrator.launch.outcome import DriverName, OnProgress, Progress
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.schema import SweepSpec
from trainer.catalog import BACKBONES
from trainer.model.weights import WeightsError, fetch_weights


def require(
    spec: SweepSpec,
    source: str,
    home: Home,
    weights: str | None,
    *,
    driver: DriverName,
    address: str | None,
    runs_finished_again: bool,
    on_progress: OnProgress,
) -> None:
    """Raise if something is missing, and download the weights that are on timm's hub alone.

    Args:
        source: the file, or another name of the spec.
        runs_finished_again: whether finished trials may run again. If not, finished studies need nothing.

    Raises:
        SpecError: with a sentence for each thing that is missing. Nothing has been written to the home.
    """
    cluster = address if driver == "ray" else None
    plans = plan_sweep(spec).studies
    found = check_requirements(spec, plans, home, weights, address=cluster, is_inline=driver == "inline")

    # The study database is not asked unless its answer matters: a large one takes long to read.
    if (found.problems or found.downloads) and not runs_finished_again:
        plans = open_studies(spec, home)
        found = check_requirements(spec, plans, home, weights, address=cluster, is_inline=driver == "inline")

    problems = [*found.problems, *home.problems()]
    if problems:
        raise SpecError(source, problems)

    for name in found.downloads:
        # Before Ray starts: otherwise each worker would fail of it, minutes later.
        note = f"downloading the weights of {name} from timm's hub"
        on_progress(Progress("downloading weights", note=note))
        try:
            fetch_weights(BACKBONES[name], weights)
        except (WeightsError, OSError) as error:
            problems.append(f"backbones: {error}")
    if problems:
        raise SpecError(source, problems)
