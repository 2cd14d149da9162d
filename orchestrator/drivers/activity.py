"""What trials do before the first epoch of a launch, for a person who waits for it."""

from __future__ import annotations

from collections import Counter

from trainer.plain_text import counted

MOST_SHOWN = 3
"""Different phases that are named at once."""


class Activity:
    """Phases of the running trials: loading weights, decoding images, building prototypes.

    Once a trial has finished an epoch, progress is in the numbers of trials, and no phase is kept any more.
    """

    def __init__(self) -> None:
        self._phases: dict[str, str] = {}
        self._is_over = False

    def on_assign(self, trial_id: str) -> None:
        """Note that a trial waits for its worker."""
        self.on_phase(trial_id, "")

    def on_phase(self, trial_id: str, phase: str) -> None:
        """Note what a trial does from now on."""
        if not self._is_over:
            self._phases[trial_id] = phase

    def on_epoch(self) -> None:
        """Note that a trial has finished an epoch."""
        self._is_over = True
        self._phases.clear()

    def on_end(self, trial_id: str) -> None:
        """Note that a trial has ended without an epoch, or that its worker is gone."""
        self._phases.pop(trial_id, None)

    def __str__(self) -> str:
        """The phases in words, those of most trials first; empty if there are none."""
        counts = Counter(phase for phase in self._phases.values() if phase)
        if not counts:
            # A worker imports torch for seconds before it can say anything.
            return "starting workers" if self._phases else ""

        names = [
            f"{phase} ({counted(count, 'trial')})" if count > 1 else phase
            for phase, count in counts.most_common(MOST_SHOWN)
        ]
        more = len(counts) - len(names)
        return "; ".join([*names, *([f"and {more} more"] if more else [])])
