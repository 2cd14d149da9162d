"""`sptune new` asks for what is missing, replaces nothing, and says what comes next."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from orchestrator.spec.loader import load_spec
from tests.orchestrator.conftest import Sptune
from trainer import machine


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The test must not depend on the GPUs and the network of this machine.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


class Terminal(io.StringIO):
    """What a person types. Also a screen, which remembers nothing."""

    def isatty(self) -> bool:
        return True


def test_it_writes_what_was_asked_for_and_says_the_next_commands(sptune: Sptune) -> None:
    arguments = (
        "--methods",
        "spt_deep",
        "vpt_deep",
        "linear",
        "--backbone",
        "vit_base_patch16_224.mae",
        "--trials",
        "7",
    )
    status, out, _ = sptune(
        "new", "my photos.yaml", "--tasks", "own/photos", "demo/digits", *arguments, "--home", "a home"
    )
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "wrote my photos.yaml: 6 studies of 7 search and 3 final trials."
    # What the sweep will need is told at once: the task is not imported yet.
    assert lines[1].startswith("missing: tasks: own/photos: not in the task store")
    assert lines[2].startswith("missing: backbones: vit_base_patch16_224.mae is not on this machine, and timm's hub ")
    assert lines[2].endswith("To try sptune without it, use vit_nano_patch4_32.mae, which ships with it.")
    assert lines[3:] == [
        "Next, check it and run it:",
        "  SPTUNE_HOME='a home' sptune data import FOLDER --task own/photos",
        "  sptune plan 'my photos.yaml' --home 'a home'",
        "  sptune launch 'my photos.yaml' --home 'a home'",
    ]

    spec = load_spec(Path("my photos.yaml"))
    assert (spec.name, spec.search.trials) == ("my-photos", 7)
    assert (spec.tasks, spec.methods) == (["own/photos", "demo/digits"], ["spt_deep", "vpt_deep", "linear"])
    status, out, _ = sptune("plan", "my photos.yaml", "--home", "a home")
    assert (status, "6 studies" in out, lines[1].removeprefix("missing: ") in out) == (1, True, True)

    # Lists may have commas, and the suffix may be left out.
    assert sptune("new", "two", "--tasks=demo", "--methods", "linear,full", "linear")[0] == 0
    spec = load_spec(Path("two.yaml"))
    assert (spec.backbones, spec.methods) == (["vit_nano_patch4_32.mae"], ["linear", "full"])


def test_it_says_that_the_home_has_a_sweep_of_that_name(sptune: Sptune, tmp_path: Path) -> None:
    note = "note: sptune-home holds a sweep photos, which a launch of this spec would continue or refuse. "
    assert note not in sptune("new", "photos.yaml", "--tasks", "demo/digits")[1].replace("\n", " ")
    Path("photos.yaml").unlink()
    (tmp_path / "sptune-home/sweeps/photos").mkdir(parents=True)
    code, said, _ = sptune("new", "photos.yaml", "--tasks", "demo/digits")
    assert code == 0
    assert note in said.replace(str(tmp_path) + "/", "").replace("\n", " ")


def test_it_says_that_the_bundled_network_sees_few_pixels_of_a_photograph(sptune: Sptune) -> None:
    bundled = sptune("new", "small", "--tasks", "own/photos", "--backbone", "vit_nano_patch4_32.mae")[1]
    assert "sees 32x32 pixels of an image. For photographs use a larger network" in bundled
    assert "32x32" not in sptune("new", "large", "--tasks", "own/photos")[1]
    assert "32x32" not in sptune("new", "digits", "--tasks", "demo/digits")[1]


def test_it_replaces_no_file(sptune: Sptune) -> None:
    Path("photos.yaml").write_text("mine")
    Path("link.yaml").symlink_to("nowhere")
    for file in ("photos.yaml", "photos", "link.yaml"):
        status, _, err = sptune("new", file, "--tasks", "demo")
        assert (status, "exists, and `sptune new` replaces no file" in err) == (2, True)
    assert Path("photos.yaml").read_text() == "mine"
    assert not Path("nowhere").exists()
    assert sptune("new", ".", "--tasks", "demo")[2].startswith("error: . is a folder: name the file to write in it")
    status, _, err = sptune("new", "x" * 300, "--tasks", "demo")
    assert (status, "File name too long" in err) == (2, True)
    # Nor does it make folders.
    assert (
        sptune("new", "no/photos.yaml", "--tasks", "demo")[2] == "error: 'no/photos.yaml': No such file or directory.\n"
    )


def test_wrong_names_are_told_all_at_once(sptune: Sptune) -> None:
    status, _, err = sptune("new", "x.yaml", "--tasks", "demo/digit", "--methods", "spt", "--backbone", "mae_vitb16")
    assert status == 2
    assert err.splitlines() == [
        "error: tasks.0: 'demo/digit' is not a task or group; did you mean 'demo/digits'?",
        "backbones.0: 'mae_vitb16' is not a backbone; here it is 'vit_base_patch16_224.mae'.",
        "methods.0: 'spt' is not a method; here it is 'spt_deep' or 'spt_shallow'.",
    ]
    # Nobody is asked where there is no terminal.
    status, _, err = sptune("new", "x.yaml", "--methods", "linear")
    assert (status, err.startswith("error: --tasks is missing: name tasks such as own/photos")) == (2, True)
    assert not Path("x.yaml").exists()


def test_in_a_terminal_it_asks_until_the_answers_are_right(sptune: Sptune, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal("demo/digit\ndemo/digits natural\n\nspt_deep, linear\nmany\n5\n"))
    monkeypatch.setattr(sys, "stdout", screen)
    sptune("new", "asked.yaml")
    said = screen.getvalue()

    spec = load_spec(Path("asked.yaml"))
    assert (spec.tasks, spec.methods, spec.search.trials) == (["demo/digits", "natural"], ["spt_deep", "linear"], 5)
    # An empty answer takes the default.
    assert spec.backbones == ["vit_base_patch16_224.mae"]
    assert "did you mean 'demo/digits'?" in said
    assert "must be a whole number from 1 to 100000, got 'many'." in said

    # Nothing is asked in vain.
    monkeypatch.setattr(sys, "stdin", Terminal("demo\n"))
    sptune("new", "asked.yaml")
    assert sys.stdin.read() == "demo\n"

    # What was given is not asked.
    monkeypatch.setattr(sys, "stdin", Terminal("\n\n"))
    sptune("new", "given.yaml", "--tasks", "demo/digits", "--trials", "3")
    spec = load_spec(Path("given.yaml"))
    assert (spec.backbones, len(spec.methods)) == (["vit_nano_patch4_32.mae"], 3)


def test_the_gpus_are_those_that_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200'\necho 'NVIDIA H200'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for visible, count in ((None, 2), ("0,1", 2), ("1", 1), ("GPU-3f, ", 1), ("", 0)):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.visible_gpus() == ["NVIDIA H200"] * count

    # Without the tool, or without a driver, there is none.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert machine.visible_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert machine.visible_gpus() == []
