"""Compiled blocks compute what blocks compute. One graph serves all lengths of the prompt. Nothing compiles twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tests.trainer.training.steps import StepRun
from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.model.compiled_blocks import KERNEL_CACHE, keep_kernels_in

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KERNEL_CACHE, str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.mark.parametrize("method", METHODS)
def test_compiled_steps_train_as_eager_steps_do(method: str, tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(method, optimizer="sgd", lr=0.01, ema_decay=0.9)
    eager, compiled = StepRun(config), StepRun(config)
    compiled.engines.use("compiled graph")
    losses = torch.stack(eager.train(20)), torch.stack(compiled.train(20))
    # Fused kernels add in another order: a few units of float32's last digit a step.
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


def test_stochastic_depth_drops_the_same_paths_in_compiled_blocks(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("spt_deep", optimizer="sgd", lr=0.01, drop_path=0.5)
    eager, compiled = StepRun(config), StepRun(config)
    compiled.engines.use("compiled")
    losses = torch.stack(eager.train(3)), torch.stack(compiled.train(3))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_graph_serves_all_layers_and_all_lengths_of_the_prompt(
    precision: str, tiny: Callable[..., TrainConfig]
) -> None:
    torch._dynamo.reset()
    counters.clear()
    num_graphs = []
    for length in (4, 5, 20, 100):
        run = StepRun(tiny("spt_deep", prompt_length=length, precision=precision))
        run.engines.use("compiled")
        run.train(1)
        num_graphs.append(counters["stats"]["unique_graphs"])

    # The first layer, whose tokens do not learn; those after it; the last, whose prompts have an output.
    assert num_graphs == [3, 3, 3, 3]
    assert not counters["graph_break"]


def test_a_user_s_folder_of_kernels_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(KERNEL_CACHE, "chosen")
    keep_kernels_in(tmp_path)
    assert os.environ[KERNEL_CACHE] == "chosen"


PROCESS = """
import json, sys
from pathlib import Path
from torch._dynamo.utils import counters
from tests.trainer.training.steps import StepRun
from trainer.config import TrainConfig
from trainer.model.compiled_blocks import keep_kernels_in, pack_kernels, unpack_kernels

folder, packed = Path(sys.argv[1]), Path(sys.argv[2])
keep_kernels_in(folder)
if packed.exists() and not folder.exists():
    unpack_kernels(packed.read_bytes())
config = {"task": "demo/digits", "method": "spt_deep", "prompt_length": 4, "prompt_init": "random", "batch_size": 8}
run = StepRun(TrainConfig.from_params(config))
run.engines.use("compiled")
losses = [float(loss) for loss in run.train(2)]
if not packed.exists():
    packed.write_bytes(pack_kernels() or b"")
hits = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}
print(json.dumps({"losses": losses, **hits}))
"""


def test_kernels_are_compiled_once_for_all_processes_and_travel_to_other_machines(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != KERNEL_CACHE}
    found = []
    for folder in ("here", "here", "elsewhere"):
        command = [sys.executable, "-c", PROCESS, str(tmp_path / folder), str(tmp_path / "packed")]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
        found.append(json.loads(process.stdout.splitlines()[-1]))

    first, second, elsewhere = found
    assert first["miss"] > 0 and second["miss"] == elsewhere["miss"] == 0
    assert second["hit"] == elsewhere["hit"] == first["miss"]
    assert first["losses"] == second["losses"] == elsewhere["losses"]
