"""Names that people write instead of ours: those of published code, misspelled ones, and any others."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection
from pathlib import Path

from trainer.catalog import BACKBONES, TASKS
from trainer.plain_text import printable

LONGEST_LIST = 300
"""Most characters of a list of names in a message."""
NEAR_PATH = 0.7
"""Least likeness, of 1, of a path that is named instead of one that does not exist. Names of files are often alike."""

_BASE = "vit_base_patch16_224"
_LARGE = "vit_large_patch16_224"
_HUGE = "vit_huge_patch14_224"

# Of VPT's code (KMnP/vpt): MODEL_ZOO, TRANSFER_TYPE, and the keys of its YAML files. Of SPT's code
# (WangYZ1608/Self-Prompt-Tuning): the options of its training scripts, which name backbone and method together.
_NAMES: dict[str, tuple[str, ...]] = {
    # Backbones.
    "mae_vitb16": (f"{_BASE}.mae",),
    "mae_vitl16": (f"{_LARGE}.mae",),
    "mae_vith14": (f"{_HUGE}.mae",),
    "mae": (f"{_BASE}.mae",),
    "mocov3_vitb": (f"{_BASE}.moco_v3",),
    "mocov3_vitb16": (f"{_BASE}.moco_v3",),
    "mocov3": (f"{_BASE}.moco_v3",),
    "moco_v3": (f"{_BASE}.moco_v3",),
    "linear-vit-b-300ep.pth.tar": (f"{_BASE}.moco_v3",),
    "mocov3_linear-vit-b-300ep.pth.tar": (f"{_BASE}.moco_v3",),
    "sup_vitb16_imagenet21k": (f"{_BASE}.orig_in21k",),
    "sup_vitl16_imagenet21k": (f"{_LARGE}.orig_in21k",),
    "sup_vith14_imagenet21k": (f"{_HUGE}.orig_in21k",),
    # VPT's file and SPT's, which timm had under the name of the network alone.
    "imagenet_supervised": (f"{_BASE}.orig_in21k", f"{_BASE}.augreg_in21k"),
    "supervised": (f"{_BASE}.orig_in21k", f"{_BASE}.augreg_in21k"),
    "vit_tiny_patch16_224_in21k": ("vit_tiny_patch16_224.augreg_in21k",),
    "vit_small_patch16_224_in21k": ("vit_small_patch16_224.augreg_in21k",),
    "vit_base_patch16_224_in21k": (f"{_BASE}.augreg_in21k",),
    "vit_large_patch16_224_in21k": (f"{_LARGE}.augreg_in21k",),
    "vit_huge_patch14_224_in21k": (f"{_HUGE}.orig_in21k",),
    # Methods.
    "spt": ("spt_deep", "spt_shallow"),
    "vpt": ("vpt_deep", "vpt_shallow"),
    "prompt": ("vpt_deep", "vpt_shallow"),
    "end2end": ("full",),
    "finetune": ("full",),
    "fine_tuning": ("full",),
    "full_finetuning": ("full",),
    "linear_probe": ("linear",),
    "linear_probing": ("linear",),
    "bitfit": ("bias",),
    "partial": ("partial_1",),
    "adaptformer": ("adapter",),
    "bpt": ("bpt_deep", "bpt_shallow"),
    "e2vpt": ("e2vpt_unpruned",),
    "mae_vpt_deep_vit_b": ("spt_deep", f"{_BASE}.mae"),
    "mae_vpt_vit_b": ("spt_shallow", f"{_BASE}.mae"),
    "vpt_deep_vit_b": ("spt_deep", f"{_BASE}.moco_v3"),
    "vpt_vit_b": ("spt_shallow", f"{_BASE}.moco_v3"),
    # Tasks.
    "vtab-1k": ("vtab",),
    "vtab1k": ("vtab",),
    "vtab-cifar(num_classes=100)": ("vtab/cifar100",),
    "cifar": ("vtab/cifar100",),
    "cifar-100": ("vtab/cifar100",),
    "pets": ("vtab/oxford_iiit_pet",),
    "camelyon": ("vtab/patch_camelyon",),
    "retinopathy": ("vtab/diabetic_retinopathy",),
    'vtab-diabetic_retinopathy(config="btgraham-300")': ("vtab/diabetic_retinopathy",),
    'vtab-clevr(task="count_all")': ("vtab/clevr_count",),
    'vtab-clevr(task="closest_object_distance")': ("vtab/clevr_dist",),
    'vtab-kitti(task="closest_vehicle_distance")': ("vtab/kitti",),
    'vtab-smallnorb(predicted_attribute="label_azimuth")': ("vtab/smallnorb_azi",),
    'vtab-smallnorb(predicted_attribute="label_elevation")': ("vtab/smallnorb_ele",),
    'vtab-dsprites(predicted_attribute="label_x_position",num_classes=16)': ("vtab/dsprites_loc",),
    'vtab-dsprites(predicted_attribute="label_orientation",num_classes=16)': ("vtab/dsprites_ori",),
    "cub": ("fgvc/cub_200_2011",),
    "cub200": ("fgvc/cub_200_2011",),
    "cub-200-2011": ("fgvc/cub_200_2011",),
    "nabirds555": ("fgvc/nabirds",),
    "oxfordflowers": ("fgvc/oxford_flowers",),
    "flowers102": ("fgvc/oxford_flowers",),
    "stanforddogs": ("fgvc/stanford_dogs",),
    "dog120": ("fgvc/stanford_dogs",),
    "stanfordcars": ("fgvc/stanford_cars",),
    "car196": ("fgvc/stanford_cars",),
    # Fields of a training run.
    "num_prompts": ("prompt_length",),
    "num_tokens": ("prompt_length",),
    "prompt_sample_type": ("prompt_init",),
    "initiation": ("prompt_init",),
    "wd_head": ("head_weight_decay",),
    "base_lr": ("lr",),
    "learning_rate": ("lr",),
    "total_epoch": ("epochs",),
    "warmup_epoch": ("warmup_epochs",),
    "model_ema_decay": ("ema_decay",),
    "cropsize": ("image_size",),
    # Of parts of a spec.
    "datasets": ("tasks",),
    "models": ("backbones",),
    "num_trials": ("trials",),
    "grace_period": ("min_epochs",),
    "reduction_factor": ("reduction",),
}
"""Our names, by a published one in lower case."""


def our_names(name: str) -> tuple[str, ...]:
    """Return our names for a name that published code or a paper uses. It is empty for any other name."""
    lower = name.lower()
    if lower in _NAMES:
        return _NAMES[lower]

    # A task without its benchmark, as in VTAB's names, and the file that the authors of a backbone published.
    short = lower.removeprefix("vtab-")
    tasks = [task for task in TASKS if task.partition("/")[2] == short]
    files = [row.name for row in BACKBONES.values() if row.published_as and row.published_as.lower() == lower]
    return (*tasks, *files)


def nearest_name(name: str, valid_names: Collection[str]) -> str | None:
    """Return the valid name that a misspelled one stands for, or None if none is close."""
    return next(iter(difflib.get_close_matches(name, list(valid_names), n=1)), None)


def name_hint(name: str, valid_names: Collection[str]) -> str:
    """Return the end of a sentence about a name that does not exist: which name it may stand for.

    That is our name for what a paper calls so, or the nearest name. Without one it has all valid names, or of a long
    list the three nearest.
    """
    ours = [candidate for candidate in our_names(name) if candidate in valid_names]
    nearest = nearest_name(name, valid_names)
    if ours and nearest not in ours:
        return f"here it is {' or '.join(map(repr, ours))}."
    if nearest:
        return f"did you mean {nearest!r}?"

    everything = ", ".join(valid_names)
    if len(everything) > LONGEST_LIST:
        # In lower case, because people write names as titles.
        three = difflib.get_close_matches(name.lower(), list(valid_names), n=3, cutoff=0.05)
        if three:
            return f"the nearest are {', '.join(three)}."
    return f"there are {everything}."


def no_such_path(path: Path) -> str:
    """Return the sentence for a path that does not exist, with the nearest one that does, if there is any."""
    near = _nearest_path(path)
    return "there is no such file or folder" + (f"; did you mean {printable(str(near))}?" if near else ".")


def _nearest_path(path: Path) -> Path | None:
    # A folder may not be readable, and no file can have some names.
    with contextlib.suppress(OSError):
        # The first part that does not exist is the misspelled one.
        existing = next((parent for parent in path.parents if parent.exists()), None)
        if existing is None:
            return None
        wrong, *rest = path.relative_to(existing).parts
        for name in difflib.get_close_matches(wrong, [file.name for file in existing.iterdir()], 1, NEAR_PATH):
            near = existing.joinpath(name, *rest)
            if near.exists():
                return near
    return None
