"""Compiled blocks compute what blocks compute. One graph serves all lengths of the prompt. Nothing compiles twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tests.trainer.test_fake_gpu import VIT_B, VIT_B_CONFIG, kernels_of_a_step, prompted, without_values
from tests.trainer.training.steps import StepRun
from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.model import compiled_blocks
from trainer.model.backbone import run_block
from trainer.model.compiled_blocks import KERNEL_CACHE, keep_kernels_in

pytestmark = [
    pytest.mark.slow,
    # torch hides this warning of its own, but not from a filter that turns warnings into errors.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile as far as the graphs of forward and backward pass, and run their operations one by one."""
    torch._dynamo.reset()
    counters.clear()
    run = torch.compile(run_block, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(compiled_blocks, "_compiled", lambda: run)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("method", METHODS)
def test_compiled_steps_train_as_eager_steps_do(method: str, tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(method, optimizer="sgd", batch_size=4, lr=0.01, ema_decay=0.9, drop_path=0.2)
    eager, compiled = StepRun(config), StepRun(config)
    compiled.engines.use("compiled graph")
    losses = torch.stack(eager.train(20)), torch.stack(compiled.train(20))
    # Graphs add gradients in another order: a few units of float32's last digit a step.
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_graph_serves_all_layers_and_all_lengths_of_the_prompt(
    precision: str, tiny: Callable[..., TrainConfig]
) -> None:
    num_graphs = []
    for length in (4, 5, 20, 100):
        run = StepRun(tiny("spt_deep", batch_size=4, prompt_length=length, precision=precision))
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
import json, re, sys
from pathlib import Path
from torch._dynamo.utils import counters
from torch._inductor.graph import GraphLowering  # sets the folder to torch's own default
from tests.trainer.training.steps import StepRun
from trainer.config import TrainConfig
from trainer.model.compiled_blocks import keep_kernels_in, pack_kernels, unpack_kernels

launches = []
GraphLowering.save_output_code = lambda code: launches.append(
    len(re.findall(r"^ +(?:cpp_fused|extern_kernels|(?:\\w+ = )?torch[.]ops)", code[code.index("def call("):], re.M))
)
folder, packed = Path(sys.argv[1]), Path(sys.argv[2])
keep_kernels_in(folder)
if packed.exists() and not (folder / "fxgraph").exists():
    unpack_kernels(packed.read_bytes())
config = {"task": "demo/digits", "method": "spt_deep", "prompt_length": 4, "prompt_init": "random", "batch_size": 8}
runs = [StepRun(TrainConfig.from_params({**config, "precision": "bf16"})) for _ in range(2)]
runs[1].engines.use("compiled")
losses = [[float(loss) for loss in run.train(2)] for run in runs]
if not packed.exists():
    packed.write_bytes(pack_kernels() or b"")
hits = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}
print(json.dumps({"losses": losses, "launches": launches, **hits}))
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler (g++)")
def test_kernels_are_compiled_once_for_all_processes_and_travel_to_other_machines(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != KERNEL_CACHE}
    found = []
    for folder in ("here", "here", "elsewhere"):
        if folder == "elsewhere":
            copy_machine_code(tmp_path / "here", tmp_path / folder)
        command = [sys.executable, "-c", PROCESS, str(tmp_path / folder), str(tmp_path / "packed")]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600)
        found.append(json.loads(process.stdout.splitlines()[-1]))

    first, second, elsewhere = found
    assert first["miss"] > 0 and second["miss"] == elsewhere["miss"] == 0
    assert second["hit"] == elsewhere["hit"] == first["miss"]
    assert first["losses"] == second["losses"] == elsewhere["losses"]
    # bf16 has two to three digits.
    eager, compiled = first["losses"]
    assert compiled == pytest.approx(eager, rel=1e-2)

    # Forward passes of the first, a middle and the last layer, and then their backward passes.
    assert len(first["launches"]) == 6
    compiled_middle = first["launches"][1] + first["launches"][4]
    eager_step, eager_middle = kernels_of_vit_b()
    # A GPU's compiler fuses as the processor's does. First and last layer count as eager here.
    assert eager_step - 10 * (eager_middle - compiled_middle) <= 400


def copy_machine_code(here: Path, elsewhere: Path) -> None:
    """Copy what g++ made of the kernels, which travel to machines without GPU as C++: it would make the same again."""
    for file in here.rglob("*.so"):
        copied = elsewhere / file.relative_to(here)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copied)


def kernels_of_vit_b() -> tuple[int, int]:
    """Return the kernels of an eager step of ViT-B on a GPU, and those of one of its middle layers."""
    counts = []
    for num_layers in (12, 11):
        network = without_values(VIT_B)
        network.vit.blocks, network.num_layers = network.vit.blocks[:num_layers], num_layers
        counts.append(kernels_of_a_step(prompted(network, VIT_B_CONFIG))[0])
    return counts[0], counts[0] - counts[1]
