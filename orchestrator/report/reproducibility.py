"""Reproducibility lines of a report: images, selection rules, seeds, software and machines behind its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.report.blocks import TextBlock
from orchestrator.report.protocols import trained_on
from orchestrator.spec.searched import searches
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial
from orchestrator.sweep.device_kinds import mixed_devices

RUNTIME_FACTS = ("software", "commit", "lock", "device", "arithmetic")
"""Keys of a trial's provenance that have a line of their own."""


def reproducibility_lines(studies: Sequence[Study]) -> TextBlock:
    """Return the facts needed to reproduce the numbers, or to explain why other numbers differ."""
    return TextBlock(title="reproducibility", lines=(*_images(studies), *_rules(studies), *_runtime(studies)))


def _images(studies: Sequence[Study]) -> Iterator[str]:
    """Yield the test images of each task, and a line for each task that was scored on several sets of images."""
    images: dict[str, dict[str, None]] = {}
    for study in studies:
        for trial in study.requested_final_trials:
            if "scored_on" in trial.provenance:
                # `scored_on` is fingerprint/split/size; the line needs the fingerprint only.
                fingerprint = trial.provenance["scored_on"].partition("/")[0]
                description = f"{fingerprint} ({trial.provenance['protocol']})"
                images.setdefault(study.plan.task, {})[description] = None

    if images:
        yield "images: " + "; ".join(f"{task} {', '.join(descriptions)}" for task, descriptions in images.items())

    for task, descriptions in images.items():
        if len(descriptions) > 1:
            yield (
                f"{task}: final trials were scored on {len(descriptions)} different sets of images, "
                "so their scores cannot be compared."
            )


def _rules(studies: Sequence[Study]) -> Iterator[str]:
    """Yield how the search and the final trials were done. Studies of several sweeps can differ in it."""
    # Studies that search alike are named only where others search in another way.
    names_by_search = searches([study.plan for study in studies])
    texts = [f"{names}: {search}" if len(names_by_search) > 1 else search for search, names in names_by_search.items()]
    select = dict.fromkeys(study.spec.final.select for study in studies)
    yield f"search: {'; '.join(texts)}; scored on val at the last epoch; select: {', '.join(select)}"

    epochs = dict.fromkeys(trial.config.epochs for study in studies for trial in study.requested_final_trials)
    seeds = dict.fromkeys(seed for study in studies for seed in study.spec.final.seeds)
    scored = f"scored on test at the last epoch (epochs: {', '.join(map(str, epochs))})" if epochs else "not scored yet"
    yield f"final: trained on {trained_on(studies)}, {scored}; seeds {', '.join(map(str, seeds))}"


def _runtime(studies: Sequence[Study]) -> Iterator[str]:
    """Yield the software and the machines of the final trials."""
    yield from mixed_devices(studies)
    trials = [trial for study in studies for trial in study.requested_final_trials]
    for name in RUNTIME_FACTS:
        # Several values on one line show that the trials ran on different software or machines.
        values = _values(trials, name)
        if values:
            yield f"{name}: {'; '.join(values)}"


def _values(trials: Sequence[Trial], name: str) -> list[str]:
    """Return the different values of a fact, in the order of the trials."""
    return list(dict.fromkeys(trial.provenance[name] for trial in trials if name in trial.provenance))
