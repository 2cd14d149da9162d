"""Kinds of devices that the trials of each study ran on: results of two kinds differ in their last bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orchestrator.spec.labels import study_text
from orchestrator.study.study import Study
from orchestrator.study.trial import Failure, Trial, wrong_device
from trainer.plain_text import counted


class DeviceKinds:
    """The kinds of devices of each study, in the order in which its trials reported them.

    Args:
        studies: the studies with their trials so far.
        may_mix: whether trials of a study may run on different kinds, `resources.mix_devices` of the spec.
    """

    def __init__(self, studies: Iterable[Study], *, may_mix: bool) -> None:
        self._may_mix = may_mix
        # The keys of an inner dict are kinds: it is an ordered set.
        self._kinds = {study.plan.key: dict.fromkeys(kinds_of(study)) for study in studies}
        self._notes: list[str] = []

    def add(self, trial: Trial) -> None:
        """Learn on which kinds a trial ran. The second kind of a study leaves a note."""
        kinds = self._kinds[trial.study]
        num_before = len(kinds)
        kinds.update(dict.fromkeys(trial.devices))

        if 0 < num_before < len(kinds):
            self._notes.append(
                f"{mixing_text([study_text(trial.config)], list(kinds))} resources.mix_devices: false refuses that."
            )

    def take_notes(self) -> list[str]:
        """Return the notes since the last call."""
        notes = self._notes
        self._notes = []
        return notes

    def required(self, study: str) -> str | None:
        """Return the kind that trials of a study must run on: that of its first trial. None if any will do."""
        if self._may_mix:
            return None
        return next(iter(self._kinds[study]), None)

    def refusal(self, trial: Trial, provenance: Mapping[str, str]) -> Failure | None:
        """Return the failure of a trial that ran an epoch on a kind that its study must not have; None if it may."""
        required = self.required(trial.study)
        device = provenance.get("device")
        if required is None or device is None or device == required:
            return None
        return wrong_device(required, device)


def kinds_of(study: Study) -> list[str]:
    """Return the kinds of devices that the trials of a study ran on."""
    return list(dict.fromkeys(kind for trial in study.trials for kind in trial.devices))


def mixed_devices(studies: Iterable[Study]) -> list[str]:
    """Return a sentence for each set of kinds that trials of one study ran on, if there are several kinds."""
    studies_by_kinds: dict[tuple[str, ...], list[str]] = {}
    for study in studies:
        kinds = kinds_of(study)
        if len(kinds) > 1:
            studies_by_kinds.setdefault(tuple(kinds), []).append(study_text(study.plan))
    return [mixing_text(names, kinds) for kinds, names in studies_by_kinds.items()]


def mixing_text(studies: Sequence[str], kinds: Sequence[str]) -> str:
    """Return the sentence that trials of a study, or of several, ran on several kinds of devices."""
    more = f" and {len(studies) - 1} more" if len(studies) > 1 else ""
    return (
        f"{studies[0]}{more}: trials ran on {counted(len(kinds), 'kind')} of devices ({', '.join(kinds)}), whose "
        "results differ in their last bits."
    )
