"""The progress bar of long commands. Commands without one do not import it."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from trainer.terminal import TextConsole, shown


class _Description(ProgressColumn):
    """What a bar counts. Rich's own column reads markup."""

    def render(self, task: Task) -> Text:
        return shown(task.description)


def progress_bar() -> Progress:
    """Return bars with a description, a count and the time that is left, on standard error."""
    columns = (_Description(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=TextConsole(stderr=True))
