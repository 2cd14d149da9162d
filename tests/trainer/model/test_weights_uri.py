"""Weights at a URI: found without a download, downloaded once per machine, completely, and again when replaced."""

from __future__ import annotations

import subprocess
import sys
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
FILE_NAMES = [*NAMES, f"{MAE_B.name}/model.safetensors"]
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
    """Return the folder of this machine's copies."""
    monkeypatch.setenv("SPTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=[pytest.param("bucket", marks=pytest.mark.slow)])
def uri(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a URI where nothing exists yet."""
    use_aws(monkeypatch, s3.env)
    return f"s3://{s3.bucket}/{tmp_path.name}?region=eu-west-1"


def copies(cache: Path) -> list[str]:
    """Return the names of all files in the cache except locks."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.name != "lock")


@pytest.mark.parametrize("as_file", [True, False])
def test_a_file_is_found_without_a_download_and_downloaded_once(uri: str, cache: Path, as_file: bool) -> None:
    write_bytes(f"{uri}/{PUBLISHED}", b"one")
    named = f"{uri}/{PUBLISHED}" if as_file else f"{uri}/"
    source = find_weights(MAE_B, named)
    assert (source.kind, source.path, str(source)) == ("uri", None, f"{uri}/{PUBLISHED}")
    assert not cache.exists()
    path = fetch_weights(MAE_B, named)
    assert path.read_bytes() == b"one"
    assert path.name == PUBLISHED, "the name tells the format and the pre-training"
    before = path.stat()
    assert fetch_weights(MAE_B, named) == path
    assert path.stat() == before
    assert copies(cache) == [PUBLISHED]


@pytest.mark.parametrize("first", FILE_NAMES)
def test_a_folder_is_searched_for_published_and_timm_names(uri: str, first: str) -> None:
    for name in FILE_NAMES[FILE_NAMES.index(first) :]:
        write_bytes(f"{uri}/{name}", name.encode())
    write_bytes(f"{uri}/mae_pretrain_vit_large.pth", b"another")
    write_bytes(f"{uri}/model.safetensors", b"another")
    assert fetch_weights(MAE_B, uri).read_bytes() == first.encode()


def test_a_replaced_file_is_downloaded_again(uri: str) -> None:
    write_bytes(f"{uri}/{PUBLISHED}", b"one")
    old = fetch_weights(MAE_B, uri)
    write_bytes(f"{uri}/{PUBLISHED}", b"another")
    assert fetch_weights(MAE_B, uri).read_bytes() == b"another"
    assert old.read_bytes() == b"one", "a process that reads it is not disturbed"


def test_an_incomplete_copy_is_not_used(uri: str, cache: Path) -> None:
    write_bytes(f"{uri}/{PUBLISHED}", b"one")
    path = fetch_weights(MAE_B, uri)
    part = path.parent.with_name(f"{path.name}.part")
    path.rename(part)
    part.write_bytes(b"one and what is too much")
    assert fetch_weights(MAE_B, uri).read_bytes() == b"one"
    assert copies(cache) == [PUBLISHED]


@pytest.mark.parametrize("damage", [b"onf", b"on", b"", b"\0\0\0"], ids=["flipped", "cut", "empty", "zeros"])
def test_a_damaged_copy_is_set_aside_and_fetched_again(
    uri: str, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_bytes(f"{uri}/{PUBLISHED}", b"one")
    path = fetch_weights(MAE_B, uri)
    path.write_bytes(damage)
    assert fetch_weights(MAE_B, uri) == path and path.read_bytes() == b"one"
    assert f"{path} is damaged: its checksum is wrong. " in caplog.text
    assert path.with_name(f"{PUBLISHED}.damaged").read_bytes() == damage


def test_a_copy_of_a_version_without_checksums_is_used(uri: str) -> None:
    write_bytes(f"{uri}/{PUBLISHED}", b"one")
    path = fetch_weights(MAE_B, uri)
    earlier = path.parent.with_name(PUBLISHED)
    path.rename(earlier)
    assert fetch_weights(MAE_B, uri) == earlier


def test_processes_that_start_together_make_one_copy(uri: str, cache: Path) -> None:
    write_bytes(f"{uri}/{PUBLISHED}", b"one" * 5_000_000)
    started = [
        subprocess.Popen([sys.executable, "-c", FETCH, uri], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    outputs = {process.communicate(timeout=120)[0] for process in started}
    assert len(outputs) == 1, "one path, one file"
    assert next(iter(outputs)).endswith(" one\n")
    assert copies(cache) == [PUBLISHED]


def test_a_copy_that_cannot_be_written_is_an_error_of_the_disk(uri: str, cache: Path) -> None:
    write_bytes(f"{uri}/{PUBLISHED}", b"one")
    cache.write_bytes(b"a file where the folder should be")
    with pytest.raises(OSError) as caught:
        fetch_weights(MAE_B, uri)
    assert caught.value.errno is not None and not isinstance(caught.value, StorageError)


def test_a_uri_without_a_file_or_folder_is_refused(uri: str) -> None:
    for row in (NANO, MAE_B):
        with pytest.raises(WeightsError) as caught:
            find_weights(row, uri)
        assert str(caught.value) == f"weights {uri}: there is no such file or folder."


def test_weights_in_the_folder_replace_the_bundled_ones(uri: str) -> None:
    write_bytes(f"{uri}/readme.txt", b"other files")
    assert find_weights(NANO, uri).kind == "bundled"
    bundled = find_weights(NANO, None).path
    assert bundled is not None
    write_bytes(f"{uri}/{BUNDLED}.safetensors", bundled.read_bytes())
    assert find_weights(NANO, uri).kind == "uri"
    assert load_backbone(BUNDLED, weights=uri).sha256 == load_backbone(BUNDLED).sha256


@pytest.mark.slow
def test_a_bucket_that_refuses_is_an_error_and_no_other_source_is_tried(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_aws(monkeypatch, s3.env | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    for use in (find_weights, fetch_weights):
        with pytest.raises(StorageError, match=r"cannot be read: the secret key does not belong to this key id\."):
            use(NANO, f"s3://{s3.bucket}/weights")
