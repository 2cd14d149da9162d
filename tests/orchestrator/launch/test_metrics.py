"""Metrics of a driver: what Prometheus reads, on the loopback address alone."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.errors import UserError
from orchestrator.launch.metrics import serve_metrics
from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import drive

GUIDE = (Path(__file__).parents[3] / "search_spaces/README.md").read_text()


def read(port: int) -> dict[str, float]:
    """Return each sample by its name, with its state if it has one."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics") as answer:
        families = [*text_string_to_metric_families(answer.read().decode())]
    samples = [sample for family in families for sample in family.samples]
    assert {sample.labels["sweep"] for sample in samples} == {"small"}
    return {" ".join([sample.name, *filter(None, [sample.labels.get("state")])]): sample.value for sample in samples}


def test_metrics_follow_the_sweep_and_are_those_of_the_documents(raw_study: dict[str, Any], record_url: str) -> None:
    raw_study |= {"fixed": {"epochs": 2, "warmup_epochs": 0}, "search": {"trials": 2}, "final": {"seeds": [42]}}
    spec = parse_spec(raw_study, "a test")
    database = StudyDatabase(record_url)
    lease = database.lease(spec.name)
    lease.acquire(spec.name)
    sweep = Sweep.resume(spec, database, MemoryTracker(), lease=lease)
    with serve_metrics(0, sweep, lease, lambda: 7) as port:
        before = read(port)
        assert before["sptune_trials_planned"] == before["sptune_trials_queued"] == 3
        assert before["sptune_images_per_second"] == 0 and before["sptune_mlflow_queued"] == 7
        assert 0 <= time.time() - before["sptune_heartbeat_timestamp_seconds"] < 600

        # Two run; one of them has finished an epoch.
        first, second = sweep.next_trial(), sweep.next_trial()
        assert first is not None and second is not None
        sweep.on_epoch(first.trial_id, 1, {"train/images_per_s": 250.0, "val/accuracy": 0.5})
        sweep.on_epoch(second.trial_id, 1, {"train/images_per_s": 150.0, "val/accuracy": 0.5})
        running = read(port)
        assert running["sptune_trials running"] == 2 and running["sptune_trials waiting"] == 0
        assert running["sptune_trials_queued"] == 1
        assert running["sptune_images_per_second"] == 400

        sweep.close()
        waiting = read(port)
        assert (waiting["sptune_trials waiting"], waiting["sptune_trials_queued"]) == (2, 3)
        assert waiting["sptune_images_per_second"] == 0

        again = Sweep.resume(spec, database, MemoryTracker(), lease=lease)
        drive(again)
        with serve_metrics(0, again, lease, lambda: 0) as other:
            done = read(other)
        assert (done["sptune_trials complete"], done["sptune_trials_queued"]) == (3, 0)

        # The port is used, and only this machine can reach it.
        with pytest.raises(UserError, match=rf"^--metrics {port}: the port cannot be used: .*Choose another"):
            serve_metrics(port, sweep, lease, lambda: 0).__enter__()
        with socket.socket() as elsewhere:
            elsewhere.bind(("127.0.0.2", port))

    lease.release()
    with pytest.raises(OSError, match="refused"):
        read(port)
    assert {name.split()[0] for name in done} == {*re.findall(r"^\| `(sptune_\w+)`", GUIDE, flags=re.MULTILINE)}
