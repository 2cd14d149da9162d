"""A trial whose images, prototypes and checkpoints are in a bucket: the same bits as in a folder, whatever hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.services import S3Server, use_aws
from tests.trainer.training.checkpoints import checkpoint_after
from trainer.config import TrainConfig
from trainer.storage.files import file_sizes, read_bytes
from trainer.training.loop import train

pytestmark = pytest.mark.slow
CLOCKS = ("train/images_per_s", "prototypes/seconds")


def trial(config: TrainConfig, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """A trial of which everything is at one place: each epoch, as far as it is the same in every run."""
    for epoch in train(
        config, data_root=f"{place}/data", folder=f"{place}/trial", prototype_cache=f"{place}/prototypes"
    ):
        yield epoch.epoch, {name: value for name, value in epoch.metrics.items() if name not in CLOCKS}


def test_a_trial_in_a_bucket_that_hangs_is_interrupted_and_goes_on_is_that_of_a_folder(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    use_aws(monkeypatch, s3.env)
    # The client takes a silent connection for dead after two seconds instead of five: a hang of eight seconds costs as
    # many attempts as one of twenty would. With an option that no other test has, the bucket is opened anew.
    monkeypatch.setattr("trainer.storage.s3.SILENT_S", 2.0)
    config = tiny("spt_deep", epochs=4)
    bucket = f"s3://{s3.bucket}/trial?region=ap-south-1"
    expected = list(trial(config, str(tmp_path)))
    interrupted = trial(config, bucket)
    assert next(interrupted) == expected[0]
    checkpoint_after(1, f"{bucket}/trial")
    s3.pause()
    waker = threading.Timer(8, s3.resume)
    waker.start()
    assert next(interrupted) == expected[1]
    assert waker.is_alive(), "an epoch is told while its checkpoint is being written"
    assert next(interrupted) == expected[2], "it waits for the bucket, and nothing is lost"
    assert not waker.is_alive()
    interrupted.close()  # type: ignore[attr-defined]
    assert list(islice(trial(config, bucket), 2)) == expected[:2], "what it knows from its checkpoint"
    assert list(trial(config, bucket)) == expected
    for name in ("prompt.safetensors", "predictions.parquet"):
        assert read_bytes(f"{bucket}/trial/{name}") == read_bytes(f"{tmp_path}/trial/{name}")
    assert not [name for name in file_sizes(bucket) if name.endswith(".part")]
