"""From a spec to its studies and their trials: pure functions, nothing imported that is slow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.spec.schema import StudyMatrix, task_names
from orchestrator.spec.space import Choice, Dimension
from trainer.catalog import TASKS
from trainer.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlan:
    """The search on one task, backbone, method and train size."""

    task: str
    backbone: str
    method: str
    train_size: float | int | str
    fixed: dict[str, Any]
    space: dict[str, Dimension]

    @property
    def key(self) -> str:
        """Name of the study within its sweep."""
        return f"{self.task} {self.method} {self.backbone} {format_train_size(self.train_size)}"

    @property
    def group(self) -> str:
        """The group of its task; a task of the user's own is a group by itself."""
        return TASKS[self.task].group if self.task in TASKS else self.task

    @property
    def epochs(self) -> int:
        """Epochs of its longest trial."""
        searched = self.space.get("epochs")
        if searched is None:
            default = next(field.default for field in dataclasses.fields(TrainConfig) if field.name == "epochs")
            return int(self.fixed.get("epochs", default))
        return int(max(searched.values if isinstance(searched, Choice) else (searched.high,)))

    def search_config(self, params: Mapping[str, Any], seed: int) -> TrainConfig:
        """A search trial: trained on train, judged on val."""
        return self._config(params, eval_split="val", seed=seed)

    def final_config(self, params: Mapping[str, Any], seed: int, measure_peeking: bool = False) -> TrainConfig:
        """A final trial: trained on trainval, scored on test at its end."""
        return self._config(params, eval_split="test", seed=seed, measure_peeking=measure_peeking)

    def _config(self, params: Mapping[str, Any], **own: Any) -> TrainConfig:
        place = {"task": self.task, "backbone": self.backbone, "method": self.method, "train_size": self.train_size}
        return TrainConfig.from_params({**self.fixed, **params, **place, **own})


def format_train_size(train_size: float | int | str) -> str:
    """A train size in a name: 0.1 for a share, 200 for a number of images, `5 per class`."""
    return f"{train_size:g}" if isinstance(train_size, float) else str(train_size)


def plan_studies(spec: StudyMatrix) -> list[StudyPlan]:
    """Every study of a sweep, in the order of the spec, each once."""
    plans = {}
    for name in spec.tasks:
        for task in task_names(name):
            for backbone in spec.backbones:
                for method in spec.methods:
                    for train_size in spec.train_sizes:
                        fixed, space = spec.params_for(method)
                        plan = StudyPlan(
                            task=task, backbone=backbone, method=method, train_size=train_size, fixed=fixed, space=space
                        )
                        plans[plan.key] = plan
    return list(plans.values())


def suggest_params(plan: StudyPlan, suggest: Callable[[str, Dimension], Any]) -> dict[str, Any]:
    """Values for the params that are searched, conditional ones after those they depend on."""
    params = dict(plan.fixed)
    drawn = {}
    for name, dimension in sorted(plan.space.items(), key=lambda item: bool(item[1].when)):
        if dimension.is_active(params):
            params[name] = drawn[name] = suggest(name, dimension)
    return drawn
