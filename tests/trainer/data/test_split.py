"""The image cache (once per node, resumed after a crash, shared), and the splits and tuning sets cut from it."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.catalog import OWN
from trainer.data import image_cache
from trainer.data.image_cache import load_decoded, load_whole
from trainer.data.split import MOVED_TOGETHER, fits_on_device, load_split, move_rows
from trainer.data.task_store import SPLITS, Card, Example, read_examples, write_task
from trainer.data.transforms import TransformName, cut, decode, decode_whole, random_crops

TASK = f"{OWN}noise"


def jpeg(seed: int) -> bytes:
    """A small picture of noise, of one of twelve sizes."""
    buffer = io.BytesIO()
    size = (40 + 7 * (seed % 3), 30 + 5 * (seed % 4))
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Card]:
    """A store with a task of 700 + 60 + 20 images in four classes."""
    root = str(tmp_path_factory.mktemp("store"))
    counts = {"train": 700, "val": 60, "test": 20}
    splits = {
        split: [Example(key=f"{split}{i:03}", label=i % 4, image=jpeg(i)) for i in range(count)]
        for split, count in counts.items()
    }

    return root, write_task(root, TASK, splits, source="here", class_names=[*"abcd"], protocol="published")


def expected(root: str, card: Card, splits: tuple[str, ...], size: int) -> torch.Tensor:
    return torch.stack([decode(e.image, size, "spt") for s in splits for e in read_examples(root, card.task, s)])


def fill_cache(root: str, card: Card, cache: str) -> None:
    load_decoded(root, card, ("train", "val"), 16, "spt", cache)


@pytest.mark.parametrize("splits", [("train", "val"), ("test",)])
@pytest.mark.parametrize("size", [1, 16, 33])
def test_a_decoded_array_has_the_pixels_of_the_transform_bit_for_bit(
    stored: tuple[str, Card], splits: tuple[str, ...], size: int, tmp_path: Path
) -> None:
    root, card = stored
    # The first call decodes the images, the second maps the files.
    for _ in range(2):
        decoded = load_decoded(root, card, splits, size, "spt", str(tmp_path)).pixels_NCSS
        assert torch.equal(decoded, expected(root, card, splits, size))


def test_blocks_decoded_before_a_crash_are_not_decoded_again(
    stored: tuple[str, Card], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, card = stored
    count = 0

    def crash_at_300(image: bytes, *arguments: object, **named: object) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 300:
            raise KeyboardInterrupt
        return decode(image, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "decode", crash_at_300)
        with pytest.raises(KeyboardInterrupt):
            fill_cache(root, card, str(tmp_path))

    assert not list(tmp_path.glob("*.u8")), "an unfinished array does not have the name of a finished one"

    # Bytes of a block that was not finished lie behind the last one that was.
    (part,) = tmp_path.glob("*-v1.part")
    with part.open("ab") as file:
        file.write(b"\x07" * 1000)

    # From here the count never reaches 300: nothing crashes a second time.
    count = -10_000
    monkeypatch.setattr(image_cache, "decode", crash_at_300)
    decoded = load_decoded(root, card, ("train", "val"), 16, "spt", str(tmp_path)).pixels_NCSS

    kept = 299 // image_cache.BLOCK * image_cache.BLOCK
    assert count == -10_000 + 760 - kept, "the finished blocks were kept"
    assert torch.equal(decoded, expected(root, card, ("train", "val"), 16))
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".checked", ".lock", ".sizes", ".sums", ".u8"]


def forbidden(*_: object, **__: object) -> NoReturn:
    raise AssertionError("nothing is to be decoded")


def test_fixed_views_decoded_by_version_0_1_0_are_used_as_they_are(
    stored: tuple[str, Card], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, card = stored
    fill_cache(root, card, str(tmp_path))

    # That version had a file of aspects instead of the sizes, and no checksums.
    name = f"{card.fingerprint}-train-val-760-spt-fixed-16-v1"
    ends = ("u8", "sizes", "sums", "checked", "lock")
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.{end}" for end in ends}
    (tmp_path / f"{name}.sums").unlink()
    (tmp_path / f"{name}.checked").unlink()
    (tmp_path / f"{name}.sizes").rename(tmp_path / f"{name}.aspect")

    monkeypatch.setattr(image_cache, "decode", forbidden)
    decoded = load_decoded(root, card, ("train", "val"), 16, "spt", str(tmp_path)).pixels_NCSS
    assert torch.equal(decoded, expected(root, card, ("train", "val"), 16))


def test_what_version_0_1_0_left_unfinished_is_decoded_again(stored: tuple[str, Card], tmp_path: Path) -> None:
    root, card = stored
    stem = tmp_path / f"{card.fingerprint}-train-val-760-spt-fixed-16-v1"
    Path(f"{stem}.part").write_bytes(bytes(256 * 3 * 16 * 16))
    Path(f"{stem}.aspect.part").write_bytes(bytes(256 * 8))
    Path(f"{stem}.progress").write_text("256")

    decoded = load_decoded(root, card, ("train", "val"), 16, "spt", str(tmp_path)).pixels_NCSS
    assert torch.equal(decoded, expected(root, card, ("train", "val"), 16))


# Side 3 shrinks all pictures, side 8 some, side 32 none.
@pytest.mark.parametrize("size", [3, 8, 32])
@pytest.mark.parametrize("splits", [("train", "val"), ("test",)])
def test_whole_views_have_the_pixels_of_the_transform_bit_for_bit(
    stored: tuple[str, Card], splits: tuple[str, ...], size: int, tmp_path: Path
) -> None:
    root, card = stored
    examples = [example for split in splits for example in read_examples(root, card.task, split)]
    # The first call decodes the images, the second maps the files.
    for _ in range(2):
        whole = load_whole(root, card, splits, size, str(tmp_path))
        assert len(whole) == len(examples)
        for row, example in enumerate(examples):
            assert np.array_equal(whole.image(row), decode_whole(example.image, size))
            assert whole.size_N2[row].tolist() == [*whole.image(row).shape[:2]]

    shrunk = [
        whole.image(row).size < 3 * np.prod(Image.open(io.BytesIO(e.image)).size) for row, e in enumerate(examples)
    ]
    assert {3: all(shrunk), 8: True, 32: not any(shrunk)}[size]


def crash_at_image_300(root: str, card: Card, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode whole views until the process is interrupted. After that, decoding works again."""
    count = 0

    def crash(image: bytes, size: int, *, upright: bool) -> NDArray[np.uint8]:
        nonlocal count
        count += 1
        if count == 300:
            raise KeyboardInterrupt
        return decode_whole(image, size, upright=upright)

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "decode_whole", crash)
        with pytest.raises(KeyboardInterrupt):
            load_whole(root, card, ("train", "val"), 16, str(cache))


def test_whole_views_decoded_before_a_crash_are_not_decoded_again(
    stored: tuple[str, Card], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, card = stored
    crash_at_image_300(root, card, tmp_path, monkeypatch)
    assert not list(tmp_path.glob("*.u8"))

    # Bytes of a block that was not finished lie behind the last one that was.
    for part in tmp_path.glob("*.part"):
        with part.open("ab") as file:
            file.write(b"\x07" * 1000)

    decoded: list[bytes] = []

    def counted(image: bytes, size: int, *, upright: bool) -> NDArray[np.uint8]:
        decoded.append(image)
        return decode_whole(image, size, upright=upright)

    monkeypatch.setattr(image_cache, "decode_whole", counted)
    whole = load_whole(root, card, ("train", "val"), 16, str(tmp_path))
    assert len(decoded) == 760 - 299 // image_cache.BLOCK * image_cache.BLOCK
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".checked", ".lock", ".sizes", ".sums", ".u8"]

    examples = [example for split in ("train", "val") for example in read_examples(root, card.task, split)]
    assert all(np.array_equal(whole.image(row), decode_whole(e.image, 16)) for row, e in enumerate(examples))


@pytest.mark.parametrize("damage", ["empty progress", "short sizes", "short pixels", "no pixels"])
def test_what_a_power_cut_left_half_written_is_decoded_again(
    stored: tuple[str, Card], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    root, card = stored
    crash_at_image_300(root, card, tmp_path, monkeypatch)

    (progress,) = tmp_path.glob("*.progress")
    (sizes,) = tmp_path.glob("*.sizes.part")
    (pixels,) = (file for file in tmp_path.glob("*.part") if len(file.suffixes) == 1)
    match damage:
        case "empty progress":
            progress.write_text("")
        case "short sizes":
            sizes.write_bytes(sizes.read_bytes()[:11])
        case "short pixels":
            pixels.write_bytes(pixels.read_bytes()[:1000])
        case _:
            pixels.unlink()

    whole = load_whole(root, card, ("train", "val"), 16, str(tmp_path))
    examples = [example for split in ("train", "val") for example in read_examples(root, card.task, split)]
    assert all(np.array_equal(whole.image(row), decode_whole(e.image, 16)) for row, e in enumerate(examples))


@pytest.mark.parametrize("damage", ["missing", "odd", "swapped"])
def test_images_whose_sizes_are_damaged_are_decoded_again(
    stored: tuple[str, Card], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Other sizes would cut every crop from the wrong pixels, without an error."""
    root, card = stored
    before = load_whole(root, card, ("test",), 16, str(tmp_path))
    (sizes,) = tmp_path.glob("*.sizes")
    match damage:
        case "missing":
            sizes.unlink()
        case "odd":
            sizes.write_bytes(sizes.read_bytes()[:-3])
        case _:
            np.roll(np.fromfile(sizes, np.int32) + 1, 2).tofile(sizes)

    after = load_whole(root, card, ("test",), 16, str(tmp_path))
    assert np.array_equal(after.pixels, before.pixels) and torch.equal(after.size_N2, before.size_N2)
    assert f"{sizes.with_suffix('.u8')} is damaged: the sizes of its images do not fit to it. " in caplog.text


@pytest.mark.parametrize("view", ["fixed", "whole"])
@pytest.mark.parametrize("damage", ["a flipped bit", "cut", "empty", "zeros", "cut checksums"])
def test_damaged_pixels_are_set_aside_and_decoded_again(
    view: str, damage: str, stored: tuple[str, Card], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, card = stored

    def load() -> NDArray[np.uint8]:
        if view == "whole":
            return load_whole(root, card, ("test",), 16, str(tmp_path)).pixels.copy()
        return load_decoded(root, card, ("test",), 16, "spt", str(tmp_path)).pixels_NCSS.numpy().copy()

    before = load()
    (pixels,) = tmp_path.glob("*.u8")
    data = bytearray(pixels.read_bytes())
    match damage:
        case "a flipped bit":
            data[len(data) // 3] ^= 4
        case "cut":
            del data[-1:]
        case "empty":
            data.clear()
        case "zeros":
            data = bytearray(len(data))
        case _:
            sums = pixels.with_suffix(".sums")
            sums.write_bytes(sums.read_bytes()[:-4])
    pixels.write_bytes(data)

    assert np.array_equal(load(), before)
    assert f"{pixels} is damaged: " in caplog.text
    assert pixels.with_suffix(".u8.damaged").read_bytes() == data, "it is kept, once"

    # Nothing is compared or decoded again while the files stay as they are.
    caplog.clear()
    assert np.array_equal(load(), before) and not caplog.records


def test_a_cache_of_a_version_without_checksums_is_used_as_it_is(stored: tuple[str, Card], tmp_path: Path) -> None:
    root, card = stored
    load_decoded(root, card, ("test",), 16, "spt", str(tmp_path))
    (pixels,) = tmp_path.glob("*.u8")
    for file in tmp_path.iterdir():
        if file != pixels:
            file.unlink()
    pixels.write_bytes(bytes(pixels.stat().st_size))
    assert not load_decoded(root, card, ("test",), 16, "spt", str(tmp_path)).pixels_NCSS.any(), "read, not decoded"


def test_whole_views_stay_in_their_file(stored: tuple[str, Card], tmp_path: Path) -> None:
    whole = load_whole(*stored, ("train", "val"), 32, str(tmp_path))
    base = whole.pixels
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap) and not whole.pixels.flags.writeable

    # An image is a piece of the file, not a copy of it.
    assert np.shares_memory(whole.image(5), whole.pixels)


def test_a_split_without_images_has_no_whole_views(tmp_path: Path) -> None:
    examples = {split: [Example(key=split, label=0, image=jpeg(0))][: split == "train"] for split in SPLITS}
    card = write_task(str(tmp_path), TASK, examples, source="here", class_names=["a"], protocol="published")
    whole = load_whole(str(tmp_path), card, ("test",), 16, str(tmp_path / "cache"))
    assert len(whole) == 0 and whole.size_N2.shape == (0, 2)


@pytest.mark.parametrize("transform", ["spt", "vpt"])
def test_crops_of_a_tuning_set_are_those_of_its_own_images(stored: tuple[str, Card], transform: TransformName) -> None:
    split = load_split(stored[0], TASK, "trainval", 41, 32, transform=transform, view="whole")
    images = {f"{s}{i:03}": jpeg(i) for s, n in (("train", 700), ("val", 60)) for i in range(n)}

    for wanted_B in torch.randperm(41).split(7):
        crops_B5 = random_crops(split.whole_sizes(wanted_B), transform, torch.Generator())
        views_BCSS = split.take_crops(wanted_B, crops_B5, 32, transform)
        whole = [decode_whole(images[split.keys[row]], 32) for row in wanted_B.tolist()]
        assert torch.equal(views_BCSS, cut(whole, crops_B5, 32, transform))


@pytest.mark.slow
def test_several_processes_that_start_at_once_decode_one_array(stored: tuple[str, Card], tmp_path: Path) -> None:
    root, card = stored
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=fill_cache, args=(root, card, str(tmp_path))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(list(tmp_path.glob("*.u8"))) == 1

    decoded = load_decoded(root, card, ("train", "val"), 16, "spt", str(tmp_path)).pixels_NCSS
    assert torch.equal(decoded, expected(root, card, ("train", "val"), 16))


def test_each_size_transform_and_view_has_an_array_of_its_own(stored: tuple[str, Card], tmp_path: Path) -> None:
    root, card = stored
    load_decoded(root, card, ("test",), 16, "spt", str(tmp_path))
    load_decoded(root, card, ("test",), 17, "spt", str(tmp_path))
    load_decoded(root, card, ("test",), 16, "vpt", str(tmp_path))
    load_whole(root, card, ("test",), 16, str(tmp_path))
    load_whole(root, card, ("test",), 17, str(tmp_path))

    assert len(list(tmp_path.glob("*.u8"))) == 5


def test_a_cache_that_cannot_be_written_raises_an_os_error(stored: tuple[str, Card], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        load_decoded(*stored, ("test",), 16, "spt", str(tmp_path / "file"))


def test_the_cache_folder_is_read_from_the_environment(
    stored: tuple[str, Card], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "SPTUNE_CACHE", str(tmp_path / "cache"))
    load_decoded(*stored, ("test",), 8, "spt")
    assert list((tmp_path / "cache").glob("*.u8"))


@pytest.mark.parametrize(("size", "count"), [(1.0, 760), (0.1, 80), (4, 4), (41, 41), ("5 per class", 20)])
def test_a_tuning_set_returns_its_images_and_labels_in_any_order(
    stored: tuple[str, Card], size: float | int | str, count: int
) -> None:
    split = load_split(stored[0], TASK, "trainval", size, 16)
    assert len(split) == len(split.keys) == len(split.labels_N) == count

    images = {f"{s}{i:03}": jpeg(i) for s, n in (("train", 700), ("val", 60)) for i in range(n)}
    for rows_B in torch.randperm(count).split(7):
        for row, image in zip(rows_B.tolist(), split.take(rows_B), strict=True):
            assert torch.equal(image, decode(images[split.keys[row]], 16, "spt"))
            assert split.labels_N[row] == int(split.keys[row][-3:]) % 4

    assert torch.equal(torch.cat(list(split.in_order(9))), split.all_images())


@pytest.mark.parametrize("sizes", [(4, 10, 200, 760), ("1 per class", "2 per class", "50 per class"), (0.01, 0.5, 1.0)])
def test_smaller_tuning_sets_are_subsets_of_larger_ones(
    stored: tuple[str, Card], sizes: tuple[float | int | str]
) -> None:
    sets = [set(load_split(stored[0], TASK, "trainval", size, 16).keys) for size in sizes]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(sets))


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (
            "191 per class",
            "191 per class asks for more images than 4 of 4 classes have: class 0 has 190. Use at most 190 per class, "
            "or a number of images.",
        ),
        (761, "761 images were asked for, and there are 760. Use at most 760."),
    ],
)
def test_a_size_above_the_number_of_images_is_a_clear_error(
    stored: tuple[str, Card], size: int | str, problem: str
) -> None:
    with pytest.raises(ValueError, match="images") as caught:
        load_split(stored[0], TASK, "trainval", size, 16)
    assert str(caught.value) == problem


def test_images_go_to_a_gpu_only_if_they_leave_most_of_its_free_memory() -> None:
    assert fits_on_device(0, 0) and fits_on_device(4 * 10**9, 10**10) and not fits_on_device(4 * 10**9 + 1, 10**10)


@pytest.mark.parametrize("count", [0, 1, MOVED_TOGETHER - 1, MOVED_TOGETHER, 2 * MOVED_TOGETHER + 1])
def test_rows_that_move_in_pieces_are_those_that_were_asked_for(count: int) -> None:
    images = torch.arange(700, dtype=torch.int64)[:, None, None, None].expand(-1, 3, 2, 2)
    rows = torch.randperm(700, generator=torch.Generator().manual_seed(count))[:count]
    moved = move_rows(images, rows, "cpu")
    assert moved.shape == (count, 3, 2, 2)
    assert torch.equal(moved, images[rows])


class Pieces(TorchDispatchMode):
    """Records each copy to a device: the number of images, and whether they come from pinned memory."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[object] = []
        self.copies: list[tuple[int, bool]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (kwargs or {}).get("pin_memory"):
            self.pinned.append(StorageWeakRef(result.untyped_storage()))
        if func is torch.ops.aten.copy_.default:
            self.copies.append((len(args[1]), StorageWeakRef(args[1].untyped_storage()) in self.pinned))
        return result


def test_rows_reach_a_gpu_through_one_pinned_buffer() -> None:
    rows = torch.arange(2 * MOVED_TOGETHER + 3)
    with FakeTensorMode(allow_non_fake_inputs=True), Pieces() as pieces:
        moved = move_rows(torch.empty(700, 3, 2, 2, dtype=torch.uint8), rows, "cuda:0")
    assert (moved.device.type, len(moved)) == ("cuda", len(rows))
    assert len(pieces.pinned) == 1
    assert pieces.copies == [(MOVED_TOGETHER, True), (MOVED_TOGETHER, True), (3, True)]


def resident_kb(name: str) -> list[int]:
    """Return how much of each mapping of a file is in the memory of this process."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    return [int(re.findall(r"^Rss: +(\d+) kB", text, re.MULTILINE)[0]) for text in mappings if name in text]


def test_a_test_split_leaves_nothing_in_memory_between_its_batches(stored: tuple[str, Card], tmp_path: Path) -> None:
    split = load_split(stored[0], TASK, "test", 1.0, 64, cache=str(tmp_path))
    (file,) = tmp_path.glob("*.u8")
    images = expected(*stored, ("test",), 64)

    for wanted_B in (torch.tensor([19, 0, 7]), torch.arange(20), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(split.take(wanted_B), images[wanted_B])
        assert resident_kb(file.name) == [0]

    # Scoring goes on if somebody empties the cache meanwhile.
    file.unlink()
    assert torch.equal(split.all_images(), images)
