"""A user's own files: what is left out is counted and named, a class never vanishes, and names are text."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.trainer.data.importers.made_sources import FORMS, Files, jpeg, lay
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.registry import find_candidates, import_task
from trainer.data.importers.source import Listing
from trainer.data.importers.sources.folders import own_folder
from trainer.data.importers.sources.parquet_tables import own_tables
from trainer.data.task_store import Card

PETS: Files = {f"{kind}/{i}.jpg": jpeg(20 * i) for kind in ("cat", "dog") for i in range(6)}
PARTS: Files = {f"{part}/{name}": data for part in ("train", "test") for name, data in PETS.items()}


def listed(path: Path) -> Listing:
    return own_folder(SourceFiles(path), "own/pets")


def imported(path: Path) -> Card:
    (candidate,) = find_candidates(path, "own/pets")
    return import_task(str(path.parent / "store"), candidate, lambda done, total: None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name",
    [
        "@eaDir/cat/0.jpg", "cat/@eaDir/0.jpg", "#recycle/0.jpg", "__MACOSX/cat/0.jpg", ".ipynb_checkpoints/0.jpg",
        "cat/.ipynb_checkpoints/0-checkpoint.jpg", ".AppleDouble/0.jpg", "cat/._0.jpg", "$RECYCLE.BIN/0.jpg",
        "System Volume Information/0.jpg", ".thumbnails/0.jpg", "lost+found/0.jpg", ".Trash-1000/files/0.jpg",
        "cat/Thumbs.db", "cat/.DS_Store", "desktop.ini", ".git/0.jpg", "THUMBS.DB", "@Recycle/0.jpg",
    ],
)  # fmt: skip
def test_what_systems_add_is_no_class_and_is_said(name: str, form: str, tmp_path: Path) -> None:
    listing = listed(FORMS[form](tmp_path / form, {**PETS, name: jpeg(3)}))
    assert (listing.class_names, len(listing.records)) == (["cat", "dog"], 12)
    (note,) = listing.repairs
    assert note.startswith("left out 1 hidden file or folder, or of a system: ")


@pytest.mark.parametrize("name", ["a.heic", "b.txt", "c.npy", "d.svg", "e.raw", "f", "g.zip.001", "h.jpg.bak"])
def test_files_that_are_not_read_are_counted_by_suffix_and_named(name: str, tmp_path: Path) -> None:
    listing = listed(lay(tmp_path, {**PETS, f"cat/{name}": b"x", f"dog/{name}": b"x"}))
    (note,) = listing.repairs
    suffix = Path(name).suffix or "without suffix"
    assert note == f"left out 2 files {suffix}, which are no images that Pillow reads: cat/{name}, dog/{name}"


@pytest.mark.parametrize("suffix", [".jfif", ".JPG", ".jpe", ".png", ".tif", ".jp2", ".avif", ".webp", ".ppm", ".gif"])
def test_every_suffix_that_pillow_reads_is_an_image_and_the_content_decides(suffix: str, tmp_path: Path) -> None:
    files = {name.replace(".jpg", suffix): data for name, data in PETS.items()}
    card = imported(lay(tmp_path / "pets", files))
    assert (card.class_names, card.repairs, sum(card.counts.values())) == (["cat", "dog"], [], 12)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("heic", "horse: 3 .heic"),
        ("mixed", "horse: 2 .npy, 1 .txt"),
        ("links", "horse: 3 files (a link to nothing)"),
        ("loop", "horse: 1 file (a link to nothing)"),
        ("pipe", "horse: 1 file (not a file)"),
        ("empty", "horse: nothing"),
        ("hidden", "horse: nothing"),
        ("deep", "horse: 1 .heic"),
    ],
)
@pytest.mark.parametrize("above", ["", "photos/", "train/"])
def test_a_class_does_not_vanish(kind: str, content: str, above: str, tmp_path: Path) -> None:
    lay(tmp_path, {f"{above}{name}": data for name, data in PETS.items()})
    horse = tmp_path / above / "horse"
    horse.mkdir(parents=True)
    files: dict[str, Files] = {
        "heic": {f"{i}.heic": b"x" for i in range(3)},
        "mixed": {"1.npy": b"x", "2.npy": b"x", "1.txt": b"x"},
        "hidden": {"._1.jpg": jpeg(1), "@eaDir/1.jpg": jpeg(1)},
        "deep": {"sub/1.heic": b"x"},
    }
    lay(horse, files.get(kind, {}))
    if kind == "links":
        for i in range(3):
            (horse / f"{i}.jpg").symlink_to(f"/no/such/{i}.jpg")
    if kind == "loop":
        (horse / "1.jpg").symlink_to(horse / "1.jpg")
    if kind == "pipe":
        os.mkfifo(horse / "1.jpg")

    with pytest.raises(ImportRefused) as refused:
        listed(tmp_path)
    assert f"  {above}{content}" in str(refused.value).splitlines()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lost", ["horse", "train/horse", "test/horse", "test"])
def test_a_class_does_not_vanish_in_an_archive_nor_from_a_part(lost: str, form: str, tmp_path: Path) -> None:
    files = dict(PARTS if "t" in lost.partition("/")[0] else PETS)
    if lost == "test":
        files = {name: data for name, data in files.items() if not name.startswith("test/")}
    with pytest.raises(ImportRefused, match="each folder beside the classes must hold images") as refused:
        listed(FORMS[form](tmp_path / form, {**files, f"{lost}/1.heic": b"x"}))
    assert f"  {lost}: 1 .heic" in str(refused.value)


def test_dangling_links_among_images_are_left_out_and_said(tmp_path: Path) -> None:
    lay(tmp_path, PETS)
    (tmp_path / "cat/gone.jpg").symlink_to("/no/such.jpg")
    listing = listed(tmp_path)
    assert len(listing.records) == 12
    assert listing.repairs == ("left out 1 file (a link to nothing): cat/gone.jpg",)


def test_folders_beside_the_parts_are_no_classes(tmp_path: Path) -> None:
    listing = listed(lay(tmp_path, {**PARTS, "annotations/1.xml": "x", "train.csv": "x"}))
    assert listing.class_names == ["cat", "dog"] and len(listing.repairs) == 2


def test_all_broken_images_are_named_at_once_by_file(tmp_path: Path) -> None:
    broken: Files = {
        f"{kind}/bad{i:02}.jpg": (b"", b"no image", jpeg(0)[:200])[i % 3] for kind in ("cat", "dog") for i in range(13)
    }
    with pytest.raises(ImportRefused) as refused:
        imported(lay(tmp_path / "pets", {**PETS, **broken}))
    first, *lines = str(refused.value).splitlines()
    assert first.startswith("26 of 38 images cannot be read; nothing was imported.")
    assert len(lines) == 21 and lines[-1] == "  and 6 more"
    assert all("/bad" in line and ".jpg cannot be decoded: " in line for line in lines[:20])
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_set_of_16_bit_images_that_would_be_black_is_refused(tmp_path: Path) -> None:
    def tif(value: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("I;16", (8, 8), value).save(buffer, "TIFF")
        return buffer.getvalue()

    dark = {name.replace("jpg", "tif"): tif(100 * i) for i, name in enumerate(PETS)}
    with pytest.raises(ImportRefused, match="no value above 1100 of 65535"):
        imported(lay(tmp_path / "dark", dark))
    card = imported(lay(tmp_path / "bright", {**dark, "cat/7.tif": tif(60_000)}))
    assert all("16 bits, scaled to 8" in repair for repair in card.repairs) and card.repairs


def test_names_that_are_no_utf_8_are_refused_with_one_sentence(tmp_path: Path) -> None:
    lay(tmp_path / "x", PETS)
    os.rename(os.fsencode(tmp_path / "x/cat"), os.fsencode(tmp_path / "x") + b"/caf\xe9")  # noqa: PTH104
    with pytest.raises(ImportRefused) as refused:
        SourceFiles(tmp_path / "x")
    assert str(refused.value).startswith("names must be UTF-8; 7 are not: caf\\udce9/0.jpg, ")
    str(refused.value).encode()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat\tone", "dog"], "control characters"),
        (["cat\n", "dog\nx"], "control characters"),
        (["cat", "cat "], "must not look the same"),
        (["caf\u00e9", "cafe\u0301"], "must not look the same"),
    ],
)
def test_classes_that_look_the_same_or_cannot_be_printed_are_refused(
    names: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ImportRefused, match=words):
        listed(lay(tmp_path, {f"{name}/{i}.jpg": jpeg(i) for name in names for i in range(3)}))
    column = [name for name in names for _ in range(3)]
    pq.write_table(pa.table({"image": [jpeg(i) for i in range(6)], "label": column}), tmp_path / "x.parquet")
    with pytest.raises(ImportRefused, match=words):
        own_tables(SourceFiles(tmp_path / "x.parquet"), "own/pets")


def test_one_class_may_be_spelt_composed_and_decomposed_in_two_parts(tmp_path: Path) -> None:
    files = {f"train/{name}/{i}.jpg": jpeg(i) for name in ("caf\u00e9", "dog") for i in range(3)}
    files |= {f"test/{name}/{i}.jpg": jpeg(i) for name in ("cafe\u0301", "dog") for i in range(3)}
    assert listed(lay(tmp_path, files)).class_names == ["caf\u00e9", "dog"]
    # Letters of both cases are classes of handwriting.
    assert listed(lay(tmp_path / "x", {f"{k}/{i}.jpg": jpeg(i) for k in "aA" for i in range(3)})).class_names == [
        "A",
        "a",
    ]


def test_very_long_and_foreign_names_are_kept(tmp_path: Path) -> None:
    names = ["c" * 250, "猫 [red]", "собака"]
    card = imported(lay(tmp_path / "pets", {f"{name}/{i}.jpg": jpeg(i) for name in names for i in range(4)}))
    assert card.class_names == sorted(names)


def table(labels: list[object], **metadata: object) -> bytes:
    columns = {"image": [jpeg(i % 200) for i in range(len(labels))], "label": labels}
    made = pa.table(columns)
    if metadata:
        made = made.replace_schema_metadata({b"huggingface": json.dumps(metadata).encode()})
    buffer = io.BytesIO()
    pq.write_table(made, buffer)
    return buffer.getvalue()


FULL = table([0, 1] * 6)


@pytest.mark.parametrize("stem", ["train-{i:05}-of-00003{h}", "data-train-{i:05}-of-00003{h}", "x_{i:05}-of-00003{h}"])
@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("missing", [None, 0, 1, 2])
def test_a_missing_shard_is_refused_by_name_whatever_the_names(
    missing: int | None, hashed: bool, stem: str, tmp_path: Path
) -> None:
    hashes = [f"-{i}a2b3c4d5e6f708" if hashed else "" for i in range(3)]
    files = {f"data/{stem.format(i=i, h=hashes[i])}.parquet": FULL for i in range(3) if i != missing}
    tree = SourceFiles(lay(tmp_path, files))
    if missing is None:
        assert len(own_tables(tree, "own/x").records) == 36
        return
    with pytest.raises(ImportRefused) as refused:
        own_tables(tree, "own/x")
    assert f"number {missing} is missing" in str(refused.value)
    assert stem.format(i=missing, h="").replace("_0", "-0") in str(refused.value).replace("_0", "-0")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["x-0-of-2-aa.parquet", "x-1-of-2-aa.parquet", "x-1-of-2-bb.parquet"], "have the same"),
        (["x-0-of-1.parquet", "x-0-of-2.parquet", "x-1-of-2.parquet"], "1 and 2: two versions"),
        (["train/0000.parquet", "train/0001.parquet", "train/0003.parquet"], r"train/0002\.parquet is missing"),
    ],
)  # fmt: skip
def test_shards_of_two_versions_and_gaps_in_numbers_are_refused(names: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match=words):
        own_tables(SourceFiles(lay(tmp_path, dict.fromkeys(names, FULL))), "own/x")


def test_years_and_series_that_are_whole_are_read(tmp_path: Path) -> None:
    for number, names in enumerate(
        (["train2019", "train2021"], ["train_1", "train_2"], ["train-1-of-2", "train-2-of-2"])
    ):
        tree = SourceFiles(lay(tmp_path / str(number), {f"{name}.parquet": FULL for name in names}))
        assert len(own_tables(tree, "own/x").records) == 24


def test_a_missing_archive_of_a_series_is_refused(tmp_path: Path) -> None:
    for i in (0, 2):
        FORMS["x.tar"](tmp_path / f"pets-{i:05}-of-00003.tar", {f"{k}/{i}.jpg": jpeg(i) for k in ("cat", "dog")})
    with pytest.raises(ImportRefused, match=r"number 1 is missing \(pets-00001-of-00003\)"):
        listed(tmp_path)


def test_all_wrong_labels_of_all_tables_are_named_at_once(tmp_path: Path) -> None:
    files = {"train.parquet": table([0, -1, 1, -1, -1]), "test.parquet": table([0, 1, None, 1.5])}
    with pytest.raises(ImportRefused) as refused:
        own_tables(SourceFiles(lay(tmp_path, files)), "own/x")
    assert "train.parquet, row 1: -1 is not a label" in str(refused.value)
    assert "Other rows with a wrong label: 3, 4." in str(refused.value)
    assert "test.parquet, row 2" in str(refused.value) and "label: 3." in str(refused.value)
    with pytest.raises(ImportRefused, match="row 1: a label must be"):
        own_tables(SourceFiles(lay(tmp_path / "x", {"train.parquet": table(["a", " ", "b"])})), "own/x")


def test_broken_images_of_a_table_are_named_by_file_and_row(tmp_path: Path) -> None:
    made = pa.table(
        {"image": [jpeg(i) if i % 9 else b"broken" for i in range(30)], "label": [i % 2 for i in range(30)]}
    )
    (tmp_path / "pets").mkdir()
    pq.write_table(made, tmp_path / "pets/all.parquet")
    with pytest.raises(ImportRefused) as refused:
        imported(tmp_path / "pets")
    assert str(refused.value).startswith("4 of 30 images cannot be read")
    assert all(f"all.parquet, row {row} cannot be decoded" in str(refused.value) for row in (0, 9, 18, 27))
