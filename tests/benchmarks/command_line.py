"""Times of commands, as ratios to `python -c "import torch"`.

Run `python -m tests.benchmarks.command_line --out command_line.json`. Each command is a process of its own. A round
runs all of them once, in turns with the import, and a ratio is the median over the rounds: a machine that slows down
meanwhile slows both. The sweep that is reported is the demo with shorter trials, launched in a temporary home.

Two of the commands cannot be faster than a library that they need. What it takes alone is measured beside them.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from orchestrator.spec.loader import find_spec
from tests.benchmarks.machine import default_device, describe, write_json

SPTUNE = str(Path(sys.executable).with_name("sptune"))
IMPORT = [sys.executable, "-c", "import torch"]
MOST = {"--help": 0.2, "status": 0.5, "report": 0.8, "predict": 2.0}
"""The ratio that each command should not exceed."""
OPEN = "RDBStorage('sqlite:///sptune-home/studies.db', skip_compatibility_check=True, skip_table_creation=True)"
LIBRARIES = {
    "Optuna opens the database": f"from optuna.storages import RDBStorage; {OPEN}",
    "import timm": "import timm",
}
"""What `status` and `predict` need of a library, as a program of its own."""


def finished_sweep(folder: Path, tasks: list[str]) -> None:
    """Launch the demo on some of its tasks, with short trials, in the home of a folder."""
    spec = yaml.safe_load(find_spec("demo").read_text())
    spec["fixed"] |= {"epochs": 2, "batch_size": 32}
    spec["search"] |= {"pruner": {"type": "none"}}
    spec |= {"tasks": tasks, "train_sizes": [0.05]}
    (folder / "demo.yaml").write_text(yaml.safe_dump(spec))
    subprocess.run([SPTUNE, "launch", "demo.yaml", "--inline"], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def image_file(folder: Path) -> Path:
    """Write an image of noise, of the size of the demo's images."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
    path = folder / "image.png"
    path.write_bytes(file.getvalue())
    return path


def any_final_trial(folder: Path) -> str:
    """Return the folder of a final trial, whose prompt `predict` can load."""
    return str(next((folder / "sptune-home/sweeps").glob("**/prompt.safetensors")).parent)


def seconds(command: list[str], folder: Path) -> float:
    """Run a command, and return how long it took."""
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each command and library: its median seconds, and its median ratio to the import of torch."""
    commands = {
        "--help": [SPTUNE, "--help"],
        "status": [SPTUNE, "status", "demo"],
        "report": [SPTUNE, "report", "demo"],
        "predict": [SPTUNE, "predict", any_final_trial(folder), str(image_file(folder))],
        **{name: [sys.executable, "-c", code] for name, code in LIBRARIES.items()},
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    ratios: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            unit = seconds(IMPORT, folder)
            took = seconds(command, folder)
            # The first round fills the caches of files and compiled modules.
            if number:
                taken[name].append(took)
                ratios[name].append(took / unit)
    return [
        {
            "command": name,
            "seconds": statistics.median(taken[name]),
            "ratio": statistics.median(ratios[name]),
            "most": MOST.get(name),
        }
        for name in commands
    ]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a line for each command and library."""
    table = Table("command", "seconds", 'of "import torch"', "at most", box=box.SIMPLE)
    for row in rows:
        most = row["most"]
        name = row["command"] if most is None else f"sptune {row['command']}"
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['ratio']:.2f}", "" if most is None else f"{most:.1f}")
    Console().print(table)


def main() -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", nargs="+", default=["demo/digits", "demo/shapes_loc"], help="tasks of the sweep")
    parser.add_argument("--device", default=default_device(), help="named in the description of the machine")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    # The home is in this folder, whatever the environment names.
    os.environ.pop("SPTUNE_HOME", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finished_sweep(folder, options.tasks)
        rows = measure(folder, options.rounds)

    print_table(rows)
    write_json(options.out, {"machine": describe(options.device), "commands": rows})


if __name__ == "__main__":
    main()
