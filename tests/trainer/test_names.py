"""Names of published code are answered with ours, and long lists of names with the three nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.catalog import BACKBONES, METHODS, TASKS
from trainer.config import field_types
from trainer.names import _NAMES, no_such_path, our_names
from trainer.validation import unknown_name

# Groups of tasks, and keys of a spec, which the catalog does not have.
OTHERS = {"vtab", "tasks", "backbones", "trials", "min_epochs", "reduction"}


def test_each_published_name_stands_for_something_that_exists() -> None:
    everything = {*TASKS, *BACKBONES, *METHODS, *field_types(), *OTHERS}
    for name, ours in _NAMES.items():
        assert name == name.lower()
        assert name not in everything, f"{name} is a name of ours"
        assert ours and set(ours) <= everything, f"{name} stands for {ours}"


@pytest.mark.parametrize(
    ("name", "table", "answer"),
    [
        ("mae_vitb16", BACKBONES, "here it is 'vit_base_patch16_224.mae'."),
        ("MAE_vpt_deep_vit_b", BACKBONES, "here it is 'vit_base_patch16_224.mae'."),
        ("MAE_vpt_deep_vit_b", METHODS, "here it is 'spt_deep'."),
        ("mae_pretrain_vit_large.pth", BACKBONES, "here it is 'vit_large_patch16_224.mae'."),
        # timm's earlier name of the weights that SPT uses: not VPT's file, though its name is nearer.
        ("vit_base_patch16_224_in21k", BACKBONES, "here it is 'vit_base_patch16_224.augreg_in21k'."),
        ("sup_vitb16_imagenet21k", BACKBONES, "here it is 'vit_base_patch16_224.orig_in21k'."),
        ("imagenet_supervised", BACKBONES,
         "here it is 'vit_base_patch16_224.orig_in21k' or 'vit_base_patch16_224.augreg_in21k'."),
        ("spt", METHODS, "here it is 'spt_deep' or 'spt_shallow'."),
        # Only those that are valid where the name stands.
        ("spt", ["spt_shallow", "linear"], "here it is 'spt_shallow'."),
        ("end2end", METHODS, "here it is 'full'."),
        ("CUB", TASKS, "here it is 'fgvc/cub_200_2011'."),
        ("dtd", TASKS, "here it is 'vtab/dtd'."),
        ('vtab-clevr(task="count_all")', TASKS, "did you mean 'vtab/clevr_count'?"),
        ('vtab-dsprites(predicted_attribute="label_x_position",num_classes=16)', TASKS,
         "here it is 'vtab/dsprites_loc'."),
        ("WD_HEAD", field_types(), "here it is 'head_weight_decay'."),
        # A misspelled name of ours stays one.
        ("shapes_loc", TASKS, "did you mean 'demo/shapes_loc'?"),
        ("vtab-dtd", TASKS, "did you mean 'vtab/dtd'?"),
        # A long list becomes the three nearest names, a short one stays whole.
        ("resnet_base", BACKBONES,
         "the nearest are vit_base_patch16_224.mae, vit_base_patch16_224.dino, vit_base_patch16_224.moco_v3."),
        ("zzz", METHODS, f"there are {', '.join(METHODS)}."),
    ],
)  # fmt: skip
def test_a_name_is_answered_with_ours(name: str, table: list[str], answer: str) -> None:
    assert unknown_name(name, table, "valid") == f"{name!r} is not valid; {answer}"
    assert not set(our_names("something else"))


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("fotos", "photos"),
        ("fotos/train", "photos/train"),
        ("photos/trian", "photos/train"),
        # The rest of the path is not below the nearest folder.
        ("fotos/test", None),
        ("elsewhere", None),
        # Alike in letters that all such names have.
        ("nope.jpg", None),
        ("photos/train/" + "x" * 300, None),
        ("/", None),
    ],
)
def test_a_path_that_does_not_exist_gets_the_nearest_that_does(
    path: str, near: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos/train").mkdir(parents=True)
    (tmp_path / "page.png").touch()
    monkeypatch.chdir(tmp_path)
    expected = f"; did you mean {near}?" if near else "."
    assert no_such_path(Path(path)) == f"there is no such file or folder{expected}"
    if near:
        assert no_such_path(tmp_path / path).endswith(f"; did you mean {tmp_path / near}?")
