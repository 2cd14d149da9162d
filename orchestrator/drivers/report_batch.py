"""Batches of epochs: a worker reports several short ones at once.

A report costs the driver milliseconds, whatever is in it: a message, a step of Tune and a write to the study database.
Workers whose epochs last a tenth of a second would make more reports than one driver can process.
"""

from __future__ import annotations

from orchestrator.study.trial import Epoch, Failure
from trainer.metric_names import EPOCH_SECONDS

REPORT_EVERY_S = 2.0
"""Seconds for which a worker collects epochs for a report. Epochs of more than half of it are reported one by one."""


def seconds_to_wait(event: Epoch | Failure, num_epochs: int, collected_s: float) -> float:
    """Return how long a worker may wait for the epoch after this one, to report both together; 0 to report at once.

    Args:
        num_epochs: of the trial. The first and the last epoch are reported at once, and so is a failure.
        collected_s: seconds since the worker began to collect for this report.
    """
    if isinstance(event, Failure) or event.epoch in (1, num_epochs):
        return 0.0

    # The next epoch takes about as long as this one. Epochs of a checkpoint have no duration and come at once.
    left_s = REPORT_EVERY_S - collected_s
    is_in_time = event.metrics.get(EPOCH_SECONDS, 0.0) < left_s
    return left_s if is_in_time else 0.0


def split_report(events: list[Epoch | Failure]) -> tuple[list[Epoch], Failure | None]:
    """Return the epochs of a report, and the failure that ends it, if any."""
    epochs = [event for event in events if isinstance(event, Epoch)]
    last = events[-1]
    return epochs, last if isinstance(last, Failure) else None
