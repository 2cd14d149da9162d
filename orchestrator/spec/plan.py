"""Studies and trial configs that follow from a spec. Pure functions without slow imports."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.spec.overrides import merge_params, merge_search, overrides_of
from orchestrator.spec.schema import Search, StudyMatrix, SweepSpec, task_names
from orchestrator.spec.space import Choice, Dimension
from trainer.catalog import TASKS
from trainer.config import TrainConfig
from trainer.plain_text import format_train_size
from trainer.validation import is_full


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlan:
    """The search on one task, backbone, method and train size."""

    task: str
    backbone: str
    method: str
    train_size: float | int | str
    fixed: dict[str, Any]
    """Params with one value for all trials."""
    space: dict[str, Dimension]
    """Params that are searched."""
    search: Search
    """How they are searched."""
    val_size: Literal["full", "same"] = "full"
    """How much of val is used; always full if train_size is."""
    draw: int = 0
    """Which random draw of the images this study uses; always 0 if train_size is full."""

    @property
    def key(self) -> str:
        """Name of the study within its sweep, such as `vtab/dtd spt_deep vit_base_patch16_224.mae 1`."""
        draw = f" draw {self.draw}" if self.draw else ""
        return f"{self.task} {self.method} {self.backbone} {format_train_size(self.train_size)}{draw}"

    @property
    def group(self) -> str:
        """The task's group. A user's own task is a group by itself."""
        return TASKS[self.task].group if self.task in TASKS else self.task

    @property
    def axes(self) -> dict[str, Any]:
        """Where the study stands among the others: its values of what a sweep compares."""
        return {
            "task": self.task,
            "method": self.method,
            "backbone": self.backbone,
            "train_size": self.train_size,
            "val_size": self.val_size,
            "draw": self.draw,
        }

    @property
    def epochs(self) -> int:
        """Number of epochs of the study's longest trial."""
        return longest_trial(self.fixed, self.space)

    @property
    def precision(self) -> str | None:
        """Precision of all trials, or None if the study searches it."""
        return None if "precision" in self.space else self.fixed.get("precision", "fp32")

    def search_config(self, params: Mapping[str, Any], seed: int) -> TrainConfig:
        """Return the config of a search trial: trained on train, scored on val."""
        return self._config(params, eval_split="val", seed=seed, eval_every=self.search.eval_every)

    def final_config(
        self,
        params: Mapping[str, Any],
        seed: int,
        *,
        train_on: Literal["trainval", "train"] = "trainval",
        measure_peeking: bool = False,
    ) -> TrainConfig:
        """Return the config of a final trial: scored on test at its end."""
        return self._config(params, eval_split="test", seed=seed, train_on=train_on, measure_peeking=measure_peeking)

    def _config(self, params: Mapping[str, Any], **set_by_sweep: Any) -> TrainConfig:
        return TrainConfig.from_params({**self.fixed, **params, **self.axes, **set_by_sweep})


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """All studies of a sweep."""

    by_key: dict[str, StudyPlan]
    """Each study by its key, in the order of the spec."""

    @property
    def studies(self) -> list[StudyPlan]:
        """The studies in the order of the spec."""
        return list(self.by_key.values())


def plan_sweep(spec: SweepSpec) -> SweepPlan:
    """Return the plan of a sweep: one study for each task, backbone, method, train size and draw.

    Tasks that a spec names twice, for instance by their group too, have one study.
    """
    return SweepPlan({study.key: study for study in plan_studies(spec, spec.search)})


def plan_studies(spec: StudyMatrix, search: Search) -> Iterator[StudyPlan]:
    """Yield the studies of a spec. What `per` gives a study is merged into its params and its search.

    Args:
        search: the spec's own `search`.
    """
    for name in spec.tasks:
        # A recorded spec may name a task that the catalog has no longer. It still has its trials.
        for task in task_names(name) or [name]:
            for backbone in dict.fromkeys(spec.backbones):
                for method in dict.fromkeys(spec.methods):
                    overrides = overrides_of(spec, task, backbone, method)
                    params = merge_params(spec, overrides).used_by(method)
                    study_search = merge_search(search, overrides)
                    for train_size, draw in _sizes_and_draws(spec):
                        yield StudyPlan(
                            task=task,
                            backbone=backbone,
                            method=method,
                            train_size=train_size,
                            fixed=params.fixed,
                            space=params.space,
                            search=study_search,
                            val_size="full" if is_full(train_size) else spec.val_size,
                            draw=draw,
                        )


def _sizes_and_draws(spec: StudyMatrix) -> Iterator[tuple[float | int | str, int]]:
    """Yield each train size with each of its draws. All images can be drawn in one way only."""
    for train_size in spec.train_sizes:
        for draw in range(1 if is_full(train_size) else spec.draws):
            yield train_size, draw


def longest_trial(fixed: Mapping[str, Any], space: Mapping[str, Dimension]) -> int:
    """Return the number of epochs of the longest trial with these params."""
    # The number of epochs may be searched too.
    searched = space.get("epochs")

    if searched is None:
        default = next(field.default for field in dataclasses.fields(TrainConfig) if field.name == "epochs")
        return int(fixed.get("epochs", default))

    numbers = searched.values if isinstance(searched, Choice) else [searched.high]
    return max(number for number in numbers if isinstance(number, int))


def suggest_params(plan: StudyPlan, suggest: Callable[[str, Dimension], Any]) -> dict[str, Any]:
    """Return values for the searched params, drawn with `suggest`.

    Conditional params are drawn after the params that they depend on, and only where they are active.
    """
    # A condition may name a fixed param or a drawn one, so both are needed to decide.
    params = dict(plan.fixed)
    drawn = {}

    for name, dimension in sorted(plan.space.items(), key=lambda item: bool(item[1].when)):
        if dimension.is_active(params):
            params[name] = drawn[name] = suggest(name, dimension)

    return drawn
