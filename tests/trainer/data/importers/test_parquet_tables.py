"""Tests of users' own Parquet files, as `datasets` and others write them. Labels are worked out by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.data.importers.fgvc_sources import of_lists
from tests.trainer.data.importers.made_sources import FORMS, Files, divided_keys, jpeg, labels, lay
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import ONE_PART, TWO_PARTS
from trainer.data.importers.source import Listing
from trainer.data.importers.sources.folders import own_row
from trainer.data.importers.sources.parquet_tables import SOURCES, own_tables


def parquet(table: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def plain(shades: list[int], values: list[Any], **options: Any) -> bytes:
    """Return a Parquet file of bytes and labels without metadata."""
    return parquet(pa.table({"image": [jpeg(shade) for shade in shades], "label": values}), **options)


def hugging_face(
    shades: list[int], values: list[int], names: list[str], image: str = "image", label: str = "label", **options: Any
) -> bytes:
    """Return a Parquet file as `datasets` writes images and class labels, with its metadata."""
    features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}, "n": {"dtype": "int64"}}
    images = pa.array([{"bytes": jpeg(shade), "path": f"{shade}.jpg"} for shade in shades])
    table = pa.table({"n": list(range(len(shades))), image: images, label: pa.array(values, pa.int64())})
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return parquet(table.replace_schema_metadata(metadata), **options)


def listed(path: Path) -> Listing:
    tree = SourceFiles(path)
    (source,) = SOURCES
    assert source.tasks == () and source.recognise(tree)
    return source.listing(tree, "own/x")


def images(listing: Listing) -> dict[str, bytes]:
    return dict(zip((r.key for r in listing.records), listing.read(listing.records), strict=True))


NAMES = ["cat", "dog", "emu"]
HUGGING_FACE: Files = {
    "README.md": "---\n",
    "data/train-00000-of-00002.parquet": hugging_face([1, 2, 3], [1, 0, 1], NAMES, row_group_size=2),
    "data/train-00001-of-00002.parquet": hugging_face([4, 5], [2, 0], NAMES),
    "data/validation-00000-of-00001.parquet": hugging_face([6], [0], NAMES),
    "data/test-00000-of-00001.parquet": hugging_face([7, 8], [1, 0], NAMES),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_hugging_face_data_set_is_listed_alike_in_every_form(form: str, tmp_path: Path) -> None:
    listing = listed(FORMS[form](tmp_path / form, HUGGING_FACE))
    assert of_lists(listing) == {
        "train/00000000": (1, "train"),
        "train/00000001": (0, "train"),
        "train/00000002": (1, "train"),
        "train/00000003": (2, "train"),
        "train/00000004": (0, "train"),
        "val/00000000": (0, "val"),
        "test/00000000": (1, "test"),
        "test/00000001": (0, "test"),
    }
    assert (listing.draw, listing.class_names) == (None, NAMES)
    shades = [7, 8, 1, 2, 3, 4, 5, 6]
    assert [images(listing)[key] for key in sorted(images(listing))] == [jpeg(shade) for shade in shades]
    row = own_row(listing, "own/x")
    assert (row.num_classes, row.num_train, row.num_val, row.num_test) == (3, 5, 1, 2)


def test_other_shards_give_the_same_keys_and_labels(tmp_path: Path) -> None:
    whole = {"train.parquet": hugging_face([1, 2, 3, 4, 5], [1, 0, 1, 2, 0], NAMES)}
    whole |= {"val.parquet": HUGGING_FACE["data/validation-00000-of-00001.parquet"]}
    whole |= {"test.parquet": HUGGING_FACE["data/test-00000-of-00001.parquet"]}
    one_file = listed(lay(tmp_path / "one", whole))
    shards = listed(lay(tmp_path / "shards", HUGGING_FACE))
    assert of_lists(one_file) == of_lists(shards) and images(one_file) == images(shards)


@pytest.mark.parametrize("row_group_size", [1, 7, 32, 1000])
def test_records_are_read_in_any_order_from_row_groups_of_any_size(row_group_size: int, tmp_path: Path) -> None:
    shades, half = list(range(100)), 50
    values = [shade % 2 for shade in shades]
    path = lay(
        tmp_path,
        {
            "train-0.parquet": plain(shades[:half], values[:half], row_group_size=row_group_size),
            "train-1.parquet": plain(shades[half:], values[half:], row_group_size=row_group_size),
            "test.parquet": plain([100, 101], [0, 1]),
        },
    )
    listing = listed(path)
    records = [record for record in listing.records if record.part == "train"]
    rng = np.random.default_rng(0)
    asks: list[list[int]] = [shades, shades[::-1], [99, 0, 0, 64], sorted(rng.permutation(100)[:9].tolist()), []]
    asks.append(rng.permutation(100).tolist())
    for ask in asks:
        assert list(listing.read([records[i] for i in ask])) == [jpeg(shades[i]) for i in ask]


def test_whole_numbers_without_names_are_ranked_and_text_is_sorted(tmp_path: Path) -> None:
    numbers = {"train.parquet": plain([1, 2, 3], [10, 2, 7]), "test.parquet": plain([4], [7])}
    listing = listed(lay(tmp_path / "numbers", numbers))
    # 2, 7 and 10 in the order of numbers, not of text.
    assert [record.label for record in listing.records] == [1, 2, 0, 1]
    assert listing.class_names == ["2", "7", "10"]
    text = {"train.parquet": plain([1, 2, 3], ["wren", "auk", "wren"]), "test.parquet": plain([4], ["auk"])}
    listing = listed(lay(tmp_path / "text", text))
    assert labels(listing) == {"test/00000000": 0, "train/00000000": 1, "train/00000001": 0, "train/00000002": 1}
    assert listing.class_names == ["auk", "wren"]
    # As pandas writes categories, and whole numbers where a column once had a gap.
    dictionary = pa.array(["wren", "auk", "wren"]).dictionary_encode()
    files = {"a.parquet": parquet(pa.table({"image": [jpeg(i) for i in range(3)], "label": dictionary}))}
    assert [record.label for record in listed(lay(tmp_path / "dictionary", files)).records] == [1, 0, 1]
    floats = listed(lay(tmp_path / "floats", {"a.parquet": plain([1, 2, 3], [1.0, 0.0, 1.0])}))
    assert [record.label for record in floats.records] == [1, 0, 1]


def test_columns_are_found_by_the_metadata_of_hugging_face_or_by_their_usual_names(tmp_path: Path) -> None:
    declared = {"train.parquet": hugging_face([1, 2, 3], [0, 1, 0], ["a", "b"], image="photo", label="kind")}
    listing = listed(lay(tmp_path / "declared", declared))
    assert listing.class_names == ["a", "b"] and list(images(listing).values()) == [jpeg(i) for i in (1, 2, 3)]
    table = pa.table({"img": [jpeg(1), jpeg(2)], "labels": [0, 1], "caption": ["x", "y"]})
    assert len(listed(lay(tmp_path / "usual", {"x.parquet": parquet(table)})).records) == 2


def test_one_table_without_a_parts_name_is_drawn_and_train_and_test_lend_val(tmp_path: Path) -> None:
    one = listed(lay(tmp_path / "one", {"photos.parquet": plain(list(range(50)), [i % 2 for i in range(50)])}))
    assert one.draw == ONE_PART
    assert [len(keys) for keys in divided_keys(one, own_row(one, "own/x")).values()] == [40, 5, 5]
    two = {"train.parquet": plain(list(range(20)), [0, 1] * 10), "test.parquet": plain([1], [1])}
    assert listed(lay(tmp_path / "two", two)).draw == TWO_PARTS
    folders = {f"default/{part}/0000.parquet": data for part, data in zip(("train", "test"), two.values(), strict=True)}
    assert of_lists(listed(lay(tmp_path / "folders", folders))) == of_lists(listed(tmp_path / "two"))
    # The file itself is a source too.
    assert len(listed(tmp_path / "one" / "photos.parquet").records) == 50


@pytest.mark.parametrize("kind", ["path", "struct"])
def test_images_may_lie_beside_the_table(kind: str, tmp_path: Path) -> None:
    names = ["images/b.jpg", "./images/a.jpg", "images/c.jpg"]
    column = names if kind == "path" else [{"bytes": None, "path": name} for name in names]
    schema = pa.string() if kind == "path" else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = parquet(pa.table({"image": pa.array(column, schema), "label": [1, 0, 1]}))
    files: Files = {f"images/{name}.jpg": jpeg(i) for i, name in enumerate("abc")}
    expected = {"images/b.jpg": jpeg(1), "images/a.jpg": jpeg(0), "images/c.jpg": jpeg(2)}
    on_top = listed(lay(tmp_path / "top", {**files, "data/all.parquet": table}))
    assert images(on_top) == expected and labels(on_top)["images/a.jpg"] == 0
    beside = {f"data/{name}": content for name, content in files.items()}
    assert list(images(listed(lay(tmp_path / "beside", {**beside, "data/all.parquet": table}))).values()) == [
        jpeg(1), jpeg(0), jpeg(2)
    ]  # fmt: skip
    with pytest.raises(
        ImportRefused, match=r"does not contain data/images/b\.jpg, data/images/a\.jpg, data/images/c\.jpg"
    ):
        listed(lay(tmp_path / "none", {"data/all.parquet": table}))


def nulls(count: int, of: int) -> bytes:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = [{"bytes": None if i < count else jpeg(i), "path": None} for i in range(of)]
    return parquet(pa.table({"image": pa.array(column, kind), "label": [i % 2 for i in range(of)]}))


TRAIN = {"train.parquet": plain([1, 2], [0, 1])}
NAMED = {"train.parquet": hugging_face([1, 2], [0, 1], ["a", "b"])}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.parquet": b"PAR1 no table PAR1"}, ["a.parquet is not a complete Parquet file"]),
        ({"a.parquet": plain(list(range(9)), [0] * 9)[:-9]}, ["a.parquet is not a complete Parquet file"]),
        ({"a.parquet": plain([], [])}, ["a.parquet must have rows, but it is empty"]),
        ({"a.parquet": parquet(pa.table({"label": [1]}))}, ["bytes or path, called image, img", "columns are label"]),
        ({"a.parquet": parquet(pa.table({"image": [b""], "y": [1]}))}, ["class, called label", "columns are image, y"]),
        ({"a.parquet": parquet(pa.table({"image": [1.5], "label": [1]}))}, ["image must hold bytes", "not double"]),
        ({"a.parquet": plain([1, 2], [0, -1])}, ["a.parquet, row 1: -1 is not a label", "has no labels (-1)"]),
        ({"a.parquet": plain([1, 2], [0, 1.5])}, ["a.parquet, row 1: a label must be a whole number", "got 1.5"]),
        ({"a.parquet": plain([1, 2], [0.0, float("nan")])}, ["a.parquet, row 1", "got nan"]),
        ({"a.parquet": plain([1, 2, 3], ["a", "b", None])}, ["a.parquet, row 2", "text in all rows, got None"]),
        ({"a.parquet": plain([1, 2, 3], [0, None, 1])}, ["a.parquet, row 1", "got None"]),
        ({"a.parquet": hugging_face([1, 2], [0, 2], ["a", "b"])}, ["row 1: 2 is not a label; 2 classes are named"]),
        ({"a.parquet": plain([1, 2], [5, 5])}, ["two classes or more, got 5"]),
        ({"a.parquet": nulls(1, 3)}, ["a.parquet: image must hold an image in each row; 1 row has none"]),
        ({"a.parquet": nulls(3, 3)}, ["a.parquet, row 0: image must hold an image or its path"]),
        ({"val.parquet": plain([1, 2], [0, 1])}, ["got val."]),
        ({**TRAIN, "validation.parquet": plain([3], [0])}, ["got train and val.", "tested on the name test"]),
        ({**TRAIN, "test.parquet": plain([3], [7])}, ["test/00000000", "a class that train has, got '7'"]),
        ({**TRAIN, "test.parquet": plain([3], ["a"])}, ["must be numbers in all files, or text in all files"]),
        ({**NAMED, "test.parquet": hugging_face([3], [0], ["b", "a"])}, ["the same classes in the same order"]),
        ({"training.parquet": plain([1], [0]), "testing.parquet": plain([1], [1])}, ["begin with train, val or test"]),
        ({"a/train.parquet": plain([1], [0]), "b/train.parquet": plain([1], [1])}, ["one data set", "['a', 'b']"]),
        ({"train-00001-of-00003.parquet": plain([1], [0])}, ["train must consist of 3 files; number 0 is missing"]),
    ],
)
def test_wrong_tables_are_refused_with_their_row(files: Files, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ImportRefused) as refused:
        listed(lay(tmp_path, files))
    for word in words:
        assert word in str(refused.value)


def test_a_missing_image_is_refused_when_read_if_the_file_has_no_statistics(tmp_path: Path) -> None:
    table = pa.table({"image": [jpeg(0), None, jpeg(2)], "label": [0, 1, 0]})
    listing = listed(lay(tmp_path, {"a.parquet": parquet(table, write_statistics=False)}))
    with pytest.raises(ImportRefused, match=r"a\.parquet, row 1: image must hold an image, but it is empty"):
        list(listing.read(listing.records))


def test_a_few_rows_of_a_large_row_group_are_in_memory_at_a_time(tmp_path: Path) -> None:
    # 64 MiB of images in one row group, in pages of 1,024 rows, as a writer makes them by default.
    rng = np.random.default_rng(0)
    table = pa.table({"image": [rng.bytes(1 << 12) for _ in range(1 << 14)], "label": [0, 1] * (1 << 13)})
    lay(tmp_path, {"a.parquet": parquet(table)})
    expected = table["image"][10_000].as_py()
    del table
    listing = own_tables(SourceFiles(tmp_path), "own/x")
    before = pa.total_allocated_bytes()
    peak = 0
    for number, image in enumerate(listing.read(listing.records)):
        peak = max(peak, pa.total_allocated_bytes() - before)
        if number == 10_000:
            assert image == expected
    assert number == (1 << 14) - 1
    assert peak < 20 << 20
