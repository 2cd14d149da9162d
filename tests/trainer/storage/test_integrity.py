"""A file that was changed after it was written is never read as another: it is named, and set aside if it can be made
again. Files are on the disk before their names are."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.damage import DAMAGES, damage
from trainer.data.split import Split
from trainer.storage.files import publish, write_bytes
from trainer.storage.integrity import (
    BLANK_CHECKSUM,
    DamagedFile,
    pack_json,
    parse_json,
    read_checked,
    read_or_set_aside,
    seal,
)
from trainer.storage.tensors import pack_tensors, unpack_tensors
from trainer.training.checkpoint import load_state, pack_state
from trainer.training.metrics import predictions

VALUES = {"lr": 0.1, "names": ["ä", BLANK_CHECKSUM, "sptune-crc32:0123abcd"], "nothing": None}
TENSORS = {"prompt": torch.arange(60.0).reshape(3, 4, 5), "empty": torch.zeros(0, 3)}


def scored() -> bytes:
    """Return the predictions of three images."""
    split = Split(
        images_R=torch.zeros(3, 3, 1, 1, dtype=torch.uint8),
        rows_N=torch.arange(3),
        labels_N=torch.tensor([0, 1, 1]),
        keys=("one", BLANK_CHECKSUM, "drei"),
        view="fixed",
        fingerprint="",
    )
    return predictions(torch.eye(3), split)


def parse_table(data: bytes) -> dict[str, Any]:
    values: dict[str, Any] = pq.read_table(io.BytesIO(data)).to_pydict()
    return values


def parse_tensors(data: bytes) -> object:
    tensors, notes = unpack_tensors(data)
    return {name: tensor.tolist() for name, tensor in tensors.items()}, notes["seconds"]


def parse_values(data: bytes) -> object:
    values = parse_json(data)
    return [values[key] for key in VALUES]


FORMATS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "json": (pack_json(VALUES), parse_values),
    "safetensors": (pack_tensors(TENSORS, {"seconds": "1.5"}), parse_tensors),
    "parquet": (scored(), parse_table),
}


@pytest.mark.parametrize("name", FORMATS)
def test_any_change_of_a_file_is_noticed_or_changes_nothing(name: str, tmp_path: Path) -> None:
    data, parse = FORMATS[name]
    path = tmp_path / name
    generator = random.Random(name)
    messages = []
    for kind in [*DAMAGES, *["a flipped bit"] * 100]:
        path.write_bytes(damage(data, kind, generator))
        try:
            found = read_checked(path, parse)
        except DamagedFile as error:
            messages.append(str(error))
        else:
            # A bit of the checksum's own name: the file looks like one of an earlier version.
            assert found == parse(data), kind

    assert len(messages) > 90
    assert all(message.startswith(f"{path} is damaged: ") and "\n" not in message for message in messages)


def test_a_checkpoint_that_was_changed_is_set_aside_and_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint.pt"
    state = {"learnable": TENSORS, "epochs": [{"epoch": 1, "metrics": {"val/accuracy": 0.5}}]}
    data = pack_state(state)
    generator = random.Random(0)
    for kind in [*DAMAGES, *["a flipped bit"] * 60]:
        path.write_bytes(damage(data, kind, generator))
        caplog.clear()
        found = load_state(path)
        if found is None:
            assert not path.exists() and path.with_name("checkpoint.pt.damaged").exists()
            assert caplog.messages[0].startswith(f"{path} is damaged: "), kind
            assert caplog.messages[0].endswith("It is now checkpoint.pt.damaged, and is made again.")
        else:
            assert torch.equal(found["learnable"]["prompt"], TENSORS["prompt"]), "a bit that holds nothing"
            assert found["epochs"] == state["epochs"]
    assert len(list(tmp_path.iterdir())) <= 2, "damaged files do not pile up"


def test_other_programs_read_the_files_as_before(tmp_path: Path) -> None:
    for name, (data, _) in FORMATS.items():
        (tmp_path / name).write_bytes(data)
    assert torch.equal(load_file(tmp_path / "safetensors")["prompt"], TENSORS["prompt"])
    assert pq.read_table(tmp_path / "parquet").num_rows == 3
    values = json.loads((tmp_path / "json").read_text())
    assert values.pop("checksum").startswith("sptune-crc32:") and values == VALUES


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text('{"lr": 0.1}')
    assert read_checked(tmp_path / "card.json", parse_json) == {"lr": 0.1}
    assert read_checked(tmp_path / "none.json", parse_json) is None


def test_the_same_content_has_the_same_bytes() -> None:
    assert pack_json(VALUES) == pack_json(VALUES)
    assert pack_tensors(TENSORS) == pack_tensors(TENSORS)
    assert scored() == scored()


def test_json_that_a_person_changed_is_read_once_its_checksum_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    lines = pack_json({"name": "one"}).decode().replace("one", "two").splitlines()
    path.write_text("\n".join(lines))
    with pytest.raises(DamagedFile, match="if you have changed it yourself, delete its line `checksum`"):
        read_checked(path, parse_json)
    path.write_text("\n".join(line for line in lines if "checksum" not in line))
    assert read_checked(path, parse_json) == {"name": "two"}


def test_what_cannot_be_made_again_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_bytes(seal(f'{{"a": "{BLANK_CHECKSUM}"}}'.encode())[:-2])
    with pytest.raises(DamagedFile):
        read_checked(path, parse_json)
    assert path.exists()
    assert read_or_set_aside(path, parse_json) is None and not path.exists()


def test_a_file_is_on_the_disk_before_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def recording_fsync(descriptor: int) -> None:
        events.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def recording_replace(part: Path, target: str) -> Path:
        events.append(("name", str(target)))
        return replace(part, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "replace", recording_replace)
    write_bytes(tmp_path / "new" / "folder" / "file", b"1")
    part = events.index(("name", f"{tmp_path}/new/folder/file"))
    assert events[part - 1][0] == "sync" and events[part - 1][1].endswith(".part")
    assert events[part + 1 :] == [("sync", f"{tmp_path}/new/folder")]
    # The new folders have names, too.
    assert {("sync", f"{tmp_path}/new"), ("sync", str(tmp_path))} <= set(events[:part])

    events.clear()
    (tmp_path / "made elsewhere").write_bytes(b"2")
    publish(tmp_path / "made elsewhere", tmp_path / "file")
    assert events == [
        ("sync", f"{tmp_path}/made elsewhere"),
        ("name", f"{tmp_path}/file"),
        ("sync", str(tmp_path)),
    ]
