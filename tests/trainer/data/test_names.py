"""No name from outside leads out of its folder: neither the name of a user's own task nor the text of a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.catalog import TASKS, is_own
from trainer.config import TrainConfig
from trainer.data.importers.archive import ImportRefused
from trainer.data.importers.registry import find_candidates
from trainer.data.task_store import TaskMissing, read_card
from trainer.data.tasks import open_task
from trainer.storage.files import read_bytes, write_bytes

CLIMBING_NAMES = [
    "own/../x",
    "own/..",
    "own/.",
    "own/",
    "own",
    "own//x",
    "own/x/..",
    "own/a/b",
    "own/a\\b",
    "own/.x",
    "own/x\n",
    "own/a b",
    "own/x?region=y",
    "own/x\0",
    "../own/x",
    "/own/x",
    "own/_x",
    "own/-x",
    "s3://own/x",
    "demo/../x",
]


@pytest.mark.parametrize("name", CLIMBING_NAMES)
def test_a_name_that_could_lead_out_of_the_store_is_refused(name: str, tmp_path: Path) -> None:
    assert not is_own(name)
    with pytest.raises(ValueError, match="is not a task"):
        TrainConfig.from_params({"task": name, "method": "linear"})
    with pytest.raises(ImportRefused, match="is not a task"):
        find_candidates(tmp_path, name)


@pytest.mark.parametrize("name", ["own/pets", "own/Pets-2.1_b", "own/7", "own/Äpfel", "own/x..y"])
def test_a_users_own_task_may_have_any_plain_name(name: str) -> None:
    assert is_own(name)
    assert TrainConfig.from_params({"task": name, "method": "linear"}).task == name


@pytest.mark.parametrize("name", TASKS)
def test_no_task_of_the_catalog_counts_as_a_users_own(name: str) -> None:
    assert not is_own(name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fingerprint": "../../climbed"}, "it is of 'demo/digits' with the fingerprint '../../climbed'"),
        ({"task": "../demo/digits"}, "it is of '../demo/digits' with the fingerprint '"),
        ({"colour": "red"}, "colour"),
        (None, "Expecting value"),
    ],
)
def test_a_card_that_is_damaged_or_of_another_task_is_refused(
    change: dict[str, Any] | None, reason: str, tmp_path: Path
) -> None:
    root = str(tmp_path)
    open_task(root, "demo/digits")
    path = tmp_path / "demo/digits/card.json"
    intact = read_bytes(path)
    assert intact is not None
    values = json.loads(intact)
    del values["checksum"]
    write_bytes(path, b"" if change is None else json.dumps(values | change).encode())

    for read in (open_task, read_card):
        with pytest.raises(TaskMissing) as caught:
            read(root, "demo/digits")
        assert str(caught.value).startswith(f"{root}/demo/digits/card.json is damaged (")
        assert reason in str(caught.value)
        assert str(caught.value).endswith("); import the task again.")
