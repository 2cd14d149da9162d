"""Under what the numbers of a report stand: images, rules, seeds, versions, machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.report.blocks import TextBlock
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial


def reproducibility_lines(studies: Sequence[Study]) -> TextBlock:
    """What somebody else needs to get the same numbers, or to see why they are others."""
    return TextBlock(title="stamp", lines=(*_images(studies), *_rules(studies), *_made_with(studies)))


def _images(studies: Sequence[Study]) -> Iterator[str]:
    found: dict[str, dict[str, None]] = {}
    for study in studies:
        for trial in study.requested_final_trials:
            if "scored_on" in trial.provenance:
                fingerprint = trial.provenance["scored_on"].partition("/")[0]
                found.setdefault(study.plan.task, {})[f"{fingerprint} ({trial.provenance['protocol']})"] = None
    if found:
        yield "images: " + "; ".join(f"{task} {', '.join(prints)}" for task, prints in found.items())
    for task, prints in found.items():
        if len(prints) > 1:
            yield f"{task}: final trials were scored on {len(prints)} sets of images: not to be compared."


def _rules(studies: Sequence[Study]) -> Iterator[str]:
    select = dict.fromkeys(study.spec.final.select for study in studies)
    searches = dict.fromkeys(
        f"{study.spec.search.trials} trials of {study.spec.search.sampler}, pruner {study.spec.search.pruner.type}, "
        f"seed {study.spec.search.seed}"
        for study in studies
    )
    yield f"search: {'; '.join(searches)}; judged on val at the last epoch; select: {', '.join(select)}"
    epochs = dict.fromkeys(trial.config.epochs for study in studies for trial in study.requested_final_trials)
    seeds = dict.fromkeys(seed for study in studies for seed in study.spec.final.seeds)
    scored = f"scored on test at the last of {', '.join(map(str, epochs))} epochs" if epochs else "not scored yet"
    yield f"final: trained on train + val, {scored}; seeds {', '.join(map(str, seeds))}"


def _made_with(studies: Sequence[Study]) -> Iterator[str]:
    finals = [trial for study in studies for trial in study.requested_final_trials]
    for name, what in (("software", "software"), ("commit", "commit"), ("lock", "lock"), ("device", "device")):
        if found := _facts(finals, name):
            yield f"{what}: {'; '.join(found)}"


def _facts(trials: Sequence[Trial], name: str) -> list[str]:
    return list(dict.fromkeys(trial.provenance[name] for trial in trials if name in trial.provenance))
