"""Weights that a URI names: found there without a fetch, brought to each machine once, whole, anew when replaced."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import S3Server, use_aws
from trainer.catalog import BACKBONES, BUNDLED
from trainer.model.backbone import load_backbone
from trainer.model.weights import WeightsError, fetch_weights, find_weights
from trainer.storage.files import StorageError, write_bytes

NANO, MAE_B = BACKBONES[BUNDLED], BACKBONES["vit_base_patch16_224.mae"]
PUBLISHED = "mae_pretrain_vit_base.pth"
NAMES = [PUBLISHED, *(f"{MAE_B.name}{suffix}" for suffix in (".safetensors", ".pth", ".npz"))]
PLACES = [*NAMES, f"{MAE_B.name}/model.safetensors"]
FETCH = """
import sys
from trainer.catalog import BACKBONES
from trainer.model.weights import fetch_weights, find_weights
path = fetch_weights(BACKBONES["vit_base_patch16_224.mae"], sys.argv[1])
assert "torch" not in sys.modules, "fetching weights needs no torch"
print(path, path.stat().st_ino, path.read_bytes()[:3].decode())
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's own copies."""
    monkeypatch.setenv("SPTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    if reason := S3Server.why_not():
        pytest.skip(reason)
    with S3Server() as server:
        yield server


@pytest.fixture(params=["file", pytest.param("bucket", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI at which nothing is yet."""
    if request.param == "file":
        return f"file://{tmp_path}/weights"
    server: S3Server = request.getfixturevalue("server")
    use_aws(monkeypatch, server.env)
    return f"s3://{server.bucket}/{tmp_path.name}?region=eu-west-1"


def copies(cache: Path) -> list[str]:
    """All files in the cache but locks, by name."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.name != "lock")


@pytest.mark.parametrize("as_file", [True, False])
def test_a_file_is_found_without_a_fetch_and_brought_once(place: str, cache: Path, as_file: bool) -> None:
    write_bytes(f"{place}/{PUBLISHED}", b"one")
    named = f"{place}/{PUBLISHED}" if as_file else f"{place}/"
    source = find_weights(MAE_B, named)
    assert (source.kind, source.path, str(source)) == ("uri", None, f"{place}/{PUBLISHED}")
    assert not cache.exists()
    path = fetch_weights(MAE_B, named)
    assert path.read_bytes() == b"one"
    assert path.name == PUBLISHED, "which tells its format and what it is published as"
    before = path.stat()
    assert fetch_weights(MAE_B, named) == path
    assert path.stat() == before
    assert copies(cache) == [PUBLISHED]


@pytest.mark.parametrize("first", PLACES)
def test_a_folder_is_searched_for_published_and_timm_names(place: str, first: str) -> None:
    for name in PLACES[PLACES.index(first) :]:
        write_bytes(f"{place}/{name}", name.encode())
    write_bytes(f"{place}/mae_pretrain_vit_large.pth", b"another")
    write_bytes(f"{place}/model.safetensors", b"another")
    assert fetch_weights(MAE_B, place).read_bytes() == first.encode()


def test_a_file_that_is_replaced_is_brought_anew(place: str) -> None:
    write_bytes(f"{place}/{PUBLISHED}", b"one")
    old = fetch_weights(MAE_B, place)
    write_bytes(f"{place}/{PUBLISHED}", b"another")
    assert fetch_weights(MAE_B, place).read_bytes() == b"another"
    assert old.read_bytes() == b"one", "who reads it goes on"


def test_a_copy_that_was_cut_off_is_none(place: str, cache: Path) -> None:
    write_bytes(f"{place}/{PUBLISHED}", b"one")
    path = fetch_weights(MAE_B, place)
    path.rename(path.with_name(f"{path.name}.part"))
    path.with_name(f"{path.name}.part").write_bytes(b"one and what is too much")
    assert fetch_weights(MAE_B, place).read_bytes() == b"one"
    assert copies(cache) == [PUBLISHED]


def test_processes_that_start_at_once_bring_one_copy(place: str, cache: Path) -> None:
    write_bytes(f"{place}/{PUBLISHED}", b"one" * 5_000_000)
    started = [
        subprocess.Popen([sys.executable, "-c", FETCH, place], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    told = {process.communicate(timeout=120)[0] for process in started}
    assert len(told) == 1, "one path, one file"
    assert next(iter(told)).endswith(" one\n")
    assert copies(cache) == [PUBLISHED]


def test_a_copy_that_cannot_be_written_says_why(place: str, cache: Path) -> None:
    write_bytes(f"{place}/{PUBLISHED}", b"one")
    cache.write_bytes(b"a file where the folder should be")
    with pytest.raises(OSError) as caught:
        fetch_weights(MAE_B, place)
    assert caught.value.errno is not None and not isinstance(caught.value, StorageError)


def test_a_uri_at_which_nothing_is_is_refused(place: str) -> None:
    for row in (NANO, MAE_B):
        with pytest.raises(WeightsError) as caught:
            find_weights(row, place)
        assert str(caught.value) == f"weights {place}: there is no such file or folder."


def test_the_bundled_weights_are_taken_unless_the_folder_holds_others(place: str) -> None:
    write_bytes(f"{place}/readme.txt", b"other files")
    assert find_weights(NANO, place).kind == "bundled"
    bundled = find_weights(NANO, None).path
    assert bundled is not None
    write_bytes(f"{place}/{BUNDLED}.safetensors", bundled.read_bytes())
    assert find_weights(NANO, place).kind == "uri"
    assert load_backbone(BUNDLED, weights=place).sha256 == load_backbone(BUNDLED).sha256


@pytest.mark.slow
def test_a_bucket_that_refuses_is_told_and_no_reason_to_look_elsewhere(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_aws(monkeypatch, server.env | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    for use in (find_weights, fetch_weights):
        with pytest.raises(StorageError, match=r"cannot be read: the secret key does not belong to this key id\."):
            use(NANO, f"s3://{server.bucket}/weights")
