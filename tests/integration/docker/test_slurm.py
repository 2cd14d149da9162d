"""docker/slurm.sh: by shellcheck, with stand-ins for all it calls, and on a real Slurm."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.docker.files import BIN, DOCKER, await_true, calls, stand_ins
from tests.integration.docker.slurm import Slurm
from tests.integration.processes import runs_in_mlflow
from tests.services import MlflowServer, Postgres

SCRIPT = DOCKER / "slurm.sh"
STAND_INS = {
    "python": "[[ $1 = -c ]] && echo 127.0.0.1 6379 10001 || cat > /dev/null",
    "ray": "true",
    "srun": "exec sleep 60",
    "scancel": "pkill -P $PPID -x sleep",
    "scontrol": 'echo "$@" >> "$CALLS"',
    "sptune": """
        echo "sptune $*" >> "$CALLS"
        trap 'exit "${AT_SIGNAL:-99}"' INT
        [[ ! $AT_SIGNAL ]] || for _ in {1..100}; do sleep 0.1; done
        exit "$STATUS" """,
}
"""What the script calls, as far as it looks at it."""
SPEC: dict[str, Any] = {
    "name": "limited",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["spt_deep"],
    "train_sizes": [0.05],
    "fixed": {"epochs": 4, "warmup_epochs": 1, "batch_size": 16, "prompt_length": 4, "prompt_init": "mean_pool"},
    "space": {"lr": {"type": "float", "low": 0.01, "high": 0.05}},
    "search": {"trials": 6, "max_concurrent": 2, "startup_trials": 4, "seed": 1},
    "final": {"seeds": [42]},
}

UNDER_WAY = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")
"""What Slurm calls a job that has not ended."""


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run([BIN / "shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    # What each node runs is a text to shellcheck.
    [inner] = re.findall(r"cat << 'END'\n(.+?)\nEND\n", SCRIPT.read_text(), flags=re.DOTALL)
    done = subprocess.run(
        [BIN / "shellcheck", "--shell=bash", "-"], input=inner, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def alone(
    folder: Path, status: str, at_signal: str, arguments: tuple[str, ...]
) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The script at work without Slurm, and the environment of its calls."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2"}
    env = {**stand_ins(folder, STAND_INS), **job, "STATUS": status, "AT_SIGNAL": at_signal}
    process = subprocess.Popen(
        ["bash", SCRIPT, *arguments], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return process, env


LAUNCH = "sptune launch --address=127.0.0.1:6379 spec.yaml"


@pytest.mark.parametrize("status", ["0", "1", "2", "3", "130"])
def test_a_sweep_that_ends_by_itself_is_not_submitted_again(tmp_path: Path, status: str) -> None:
    process, env = alone(tmp_path, status, "", ("spec.yaml",))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == int(status), said
    assert calls(env) == [LAUNCH]


@pytest.mark.parametrize(
    ("at_signal", "again"), [("130", True), ("143", True), ("0", False), ("1", False), ("2", False), ("3", False)]
)
def test_one_that_is_interrupted_at_its_limit_is_submitted_again_unless_it_had_just_ended(
    tmp_path: Path, at_signal: str, again: bool
) -> None:
    process, env = alone(tmp_path, "0", at_signal, ("spec.yaml",))
    await_true(lambda: calls(env) == [LAUNCH], process)
    time.sleep(0.3)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=60)
    assert calls(env) == [LAUNCH, *(["requeue 7"] if again else [])], said
    assert process.returncode == int(at_signal)


def test_one_that_is_cancelled_is_interrupted_and_not_submitted_again(tmp_path: Path) -> None:
    process, env = alone(tmp_path, "0", "130", ("spec.yaml",))
    await_true(lambda: calls(env) == [LAUNCH], process)
    time.sleep(0.3)
    process.terminate()
    process.communicate(timeout=60)
    assert (process.returncode, calls(env)) == (130, [LAUNCH])


def test_without_a_spec_it_says_how_it_is_used(tmp_path: Path) -> None:
    process, env = alone(tmp_path, "0", "", ())
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, calls(env)) == (2, [])
    assert "SPEC" in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_a_real_slurm_a_sweep_goes_on_after_its_time_limit_until_it_is_done(
    postgres: Postgres, open_mlflow: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := Slurm.why_not():
        pytest.skip(reason)
    spec = tmp_path / "limited.yaml"
    spec.write_text(json.dumps(SPEC))
    with Slurm() as slurm:
        servers = {"SPTUNE_STUDIES": postgres.create("limited"), **postgres.env, **open_mlflow.env}
        path = f"{BIN}:{os.environ['PATH']}"
        options = ["--nodes=2", "--cpus-per-task=1", "--time=60"]
        home = tmp_path / "home"
        job = slurm.submit(*options, SCRIPT, spec, PATH=path, OMP_NUM_THREADS="1", SPTUNE_HOME=str(home), **servers)
        log = slurm.work / f"sptune-{job}.log"

        def said(words: str) -> bool:
            return log.exists() and re.search(words, log.read_text()) is not None

        await_true(lambda: said(r"[1-9] of 7 trials finished") or slurm.job(job)["JobState"] not in UNDER_WAY)
        # The sweep would be over before Slurm next looks at limits.
        waiting = [process for process in slurm.processes() if "TrialWorker" in " ".join(process.cmdline())]
        for worker in waiting:
            worker.suspend()
        # Its limit is less than the script's three minutes away: Slurm sends the signal when it next looks.
        minutes, seconds = map(int, slurm.job(job)["RunTime"].split(":")[1:])
        slurm.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes + (seconds + 110 + 59) // 60}")
        await_true(lambda: said("stopping after the current epoch") or slurm.job(job)["JobState"] not in UNDER_WAY)
        for worker in waiting:
            worker.resume()
        await_true(lambda: said("submitted again") or slurm.job(job)["JobState"] not in UNDER_WAY)
        slurm.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")
        await_true(lambda: slurm.job(job)["JobState"] not in UNDER_WAY)
        told = slurm.job(job)
        assert (told["JobState"], told["Restarts"]) == ("COMPLETED", "1"), log.read_text()
        assert "stopped by SIGINT" in log.read_text() and "7 of 7 trials finished" in log.read_text()
        assert log.read_text().count("Ray has 2 of 2 nodes") == 2
        assert "Draining" not in (slurm.work / f"sptune-{job}-ray.log").read_text(), "nodes are given back at once"
        for name, value in open_mlflow.env.items():
            monkeypatch.setenv(name, value)
        assert [*runs_in_mlflow(open_mlflow.uri, "limited").values()] == [("FINISHED", "complete", 4)] * 7
        left = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])
                if any(f"/tmp/ray-{job}-" in word for word in process.info["cmdline"] or [])]  # fmt: skip
        assert left == [] and [*Path("/tmp").glob(f"ray-{job}-*")] == []
