"""Rules of `per`: each entry selects studies of its spec and changes something for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.spec.overrides import Overrides, merge_params, overrides_of, search_key
from orchestrator.spec.schema import StudyMatrix, StudyOverride, task_names
from trainer.validation import unknown_name


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyKind:
    """Studies with the same params: one backbone and method, and tasks that the same entries of `per` select."""

    backbone: str
    method: str
    indices: tuple[int, ...]
    """Of the entries that select them."""
    tasks: tuple[str, ...]

    def overrides(self, spec: StudyMatrix) -> Overrides:
        """Return the entries that select the studies, each with its index."""
        return tuple((index, spec.per[index]) for index in self.indices)


def study_kinds(spec: StudyMatrix) -> list[StudyKind]:
    """Return the studies of a spec by what they share. Sizes and draws are left out, because no entry selects them.

    Where no name of a list is valid, its name is an empty text: the rest of the spec can still be checked.
    """
    tasks_by_kind: dict[tuple[str, str, tuple[int, ...]], dict[str, None]] = {}
    tasks = dict.fromkeys(task for name in spec.tasks for task in task_names(name)) or {"": None}

    for backbone in dict.fromkeys(spec.backbones or [""]):
        for method in dict.fromkeys(spec.methods or [""]):
            for task in tasks:
                indices = tuple(index for index, _ in overrides_of(spec, task, backbone, method))
                tasks_by_kind.setdefault((backbone, method, indices), {})[task] = None

    return [
        StudyKind(backbone=backbone, method=method, indices=indices, tasks=tuple(names))
        for (backbone, method, indices), names in tasks_by_kind.items()
    ]


def override_problems(spec: StudyMatrix) -> Iterator[tuple[str, str]]:
    """Yield the path of an entry and a sentence for each reason why the entry has no effect."""
    # Paths that give at least one study a value.
    effective: set[str] = set()
    selecting: set[int] = set()
    for kind in study_kinds(spec):
        overrides = kind.overrides(spec)
        selecting |= {*kind.indices}
        effective |= {*merge_params(spec, overrides).keys.values()}
        effective |= {search_key(name, overrides) for _, entry in overrides for name in entry.search.values}

    for index, entry in enumerate(spec.per):
        path = f"per.{index}"
        unknown = [*_unknown_names(spec, entry)]

        if entry.method is None and entry.backbone is None and entry.group is None:
            yield path, f"{path}: selects nothing; give it a method, a backbone or a group."
        elif unknown:
            for selector, problem in unknown:
                yield path, f"{path}.{selector}: {problem}"
        elif index not in selecting:
            yield path, f"{path}: no study of this spec matches all its selectors; leave the entry out."

        keys = [f"{path}.{key}" for key in _changed_keys(entry)]
        if not keys:
            yield path, f"{path}: changes nothing; give it fixed, space or search."

        # Later entries win, so those below may replace everything that an entry gives.
        for key in keys:
            if index in selecting and key not in effective:
                yield path, f"{key}: later entries replace it in every study; put this entry below them."


def _unknown_names(spec: StudyMatrix, entry: StudyOverride) -> Iterator[tuple[str, str]]:
    """Yield the selector and a sentence for each name that is no part of the spec."""
    tasks = {task for name in spec.tasks for task in task_names(name)}

    for selector, names, valid in (
        ("method", entry.method, spec.methods),
        ("backbone", entry.backbone, spec.backbones),
    ):
        for name in names or ():
            if name not in valid:
                yield selector, unknown_name(name, valid, f"a {selector} of this spec")

    for name in entry.group or ():
        if not tasks & {*task_names(name)}:
            yield "group", unknown_name(name, spec.tasks, "a task or group of this spec")


def _changed_keys(entry: StudyOverride) -> Iterator[str]:
    """Yield the path, within the entry, of each key that it changes."""
    for name in entry.fixed:
        # A name in both is a mistake that is reported elsewhere.
        if name not in entry.space:
            yield f"fixed.{name}"
    for name in entry.space:
        yield f"space.{name}"
    for name in entry.search.values:
        yield f"search.{name}"
