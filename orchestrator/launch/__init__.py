"""Launch or resume a sweep from Python. The command line is a thin caller of this module.

    from orchestrator.launch import launch, open_sweep

    outcome = launch("demo", driver="inline", home="my-home")
    if outcome.is_done:
        sweep = open_sweep("demo", home="my-home")
        print(sweep.report())
        classifier = sweep.load(sweep.best(task="demo/digits"))

Results and progress are returned, not printed; only Ctrl-C is answered on standard error. Slow libraries are imported
by the functions that need them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.environment.home import Home, home_at, weights_at
from orchestrator.environment.lookup import find_sweep, recorded_source
from orchestrator.environment.requirements import find_missing
from orchestrator.errors import SpecError
from orchestrator.launch.check import require
from orchestrator.launch.outcome import DriverName, OnProgress, Progress, Rerun, SweepOutcome
from orchestrator.launch.results import SweepResults, open_sweep
from orchestrator.launch.run import run_sweep
from orchestrator.spec.loader import find_spec, load_cluster, load_spec, parse_cluster, parse_spec
from orchestrator.spec.notify import Notify
from orchestrator.spec.resources import Cluster
from orchestrator.spec.schema import SweepSpec
from orchestrator.spec.shipped import SUFFIXES

__all__ = ["Progress", "Rerun", "SweepOutcome", "SweepResults", "launch", "open_sweep", "resume"]


def launch(
    spec: str | Path | SweepSpec | Mapping[str, Any],
    *,
    home: str | None = None,
    driver: DriverName = "ray",
    address: str | None = None,
    weights: str | None = None,
    on_progress: OnProgress | None = None,
    metrics: int | None = None,
) -> SweepOutcome:
    """Run a sweep until it is done, or resume it if it has been launched before.

    Args:
        spec: a YAML file, the name of a spec that ships with the package, a mapping, or a parsed spec.
        home: folder or bucket; default: `SPTUNE_HOME`, the spec's `cluster.home`, or `./sptune-home`.
        driver: `ray` for all cores and GPUs, `inline` for one trial at a time in this process.
        address: a running Ray cluster; default: `cluster.address` of the spec, or a Ray of this machine alone.
        weights: a file, or a folder of files, with weights of backbones.
        on_progress: called after every change.
        metrics: port on this machine's loopback address for Prometheus, while trials run.

    Raises:
        SpecError: with every problem of the spec and of the home. Nothing has been written.
        UserError: if the sweep cannot be started, with the reason and the way out.
    """
    on_progress = on_progress or _ignore
    on_progress(Progress("checking the spec"))
    # The addresses come first: the spec's tasks and weights are looked for in the home that they name.
    cluster = _cluster_of(spec)
    place = home_at(home, cluster)
    weights = weights_at(weights, cluster)
    address = address or cluster.address
    source = "the spec" if isinstance(spec, SweepSpec | Mapping) else str(find_spec(str(spec)))
    parsed = _load(spec, source, place, weights)
    require(
        parsed,
        source,
        place,
        weights,
        driver=driver,
        address=address,
        runs_finished_again=False,
        on_progress=on_progress,
    )

    # Here and below, slow libraries are imported after the spec is known to be right: its mistakes are printed in a
    # fraction of a second.
    from orchestrator.environment.connections import open_database

    # Nothing is written before this line.
    place.create()
    return run_sweep(
        parsed,
        place,
        open_database(place),
        driver=driver,
        address=address,
        weights=weights,
        on_progress=on_progress,
        notify=parsed.notify,
        metrics=metrics,
    )


def resume(
    name: str,
    *,
    home: str | None = None,
    driver: DriverName = "ray",
    address: str | None = None,
    weights: str | None = None,
    rerun: Rerun | None = None,
    on_progress: OnProgress | None = None,
    metrics: int | None = None,
) -> SweepOutcome:
    """Resume a sweep by its name, with the spec that the study database holds.

    Args:
        name: the sweep's name, or its spec's file. Only a file's `notify` is called.
        rerun: finished trials to run again.

    The other arguments and the errors are those of `launch`.
    """
    on_progress = on_progress or _ignore
    on_progress(Progress("checking the spec"))
    place, database, spec = find_sweep(home, name, strict=True)
    database.close()
    weights = weights_at(weights, spec.cluster)
    address = address or spec.cluster.address
    # The spec was checked when it was recorded, but data and weights may have moved since.
    require(
        spec,
        recorded_source(spec.name),
        place,
        weights,
        driver=driver,
        address=address,
        runs_finished_again=rerun is not None,
        on_progress=on_progress,
    )

    from orchestrator.environment.connections import open_database

    place.create()
    return run_sweep(
        spec,
        place,
        open_database(place),
        driver=driver,
        address=address,
        weights=weights,
        rerun=rerun,
        on_progress=on_progress,
        notify=_notify_of(name),
        metrics=metrics,
    )


def _ignore(progress: Progress) -> None:
    pass


def _notify_of(name: str) -> Notify | None:
    """Return whom the spec's file tells; None if the sweep is named without its file, or if the file is gone.

    The recorded spec is not asked: who can write to the study database must not choose what runs here.
    """
    is_file = name.endswith(SUFFIXES) and Path(name).exists()
    return load_spec(find_spec(name)).notify if is_file else None


def _cluster_of(spec: str | Path | SweepSpec | Mapping[str, Any]) -> Cluster:
    """Return where the spec says that everything is, before the rest of it is checked."""
    if isinstance(spec, SweepSpec):
        return spec.cluster
    if isinstance(spec, Mapping):
        return parse_cluster(spec)
    return load_cluster(find_spec(str(spec)))


def _load(spec: str | Path | SweepSpec | Mapping[str, Any], source: str, home: Home, weights: str | None) -> SweepSpec:
    """Return a checked spec.

    Raises:
        SpecError: with the problems of the spec, and with the tasks, the weights and the home that it lacks.
    """
    missing = functools.partial(find_missing, home=home, weights=weights)
    try:
        if isinstance(spec, SweepSpec | Mapping):
            # A parsed spec goes through the same checks: another version may have parsed it.
            raw = spec.model_dump(mode="json") if isinstance(spec, SweepSpec) else dict(spec)
            return parse_spec(raw, source, missing)
        return load_spec(Path(source), missing)
    except SpecError as error:
        # One error with everything that is wrong, so that nobody repairs and launches in turns.
        raise SpecError(source, [*error.located, *home.problems()]) from None
