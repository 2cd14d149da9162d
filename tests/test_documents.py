"""What the documents say is so: commands parse, links lead somewhere, the lock fits, CI says the same words."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.main import get_command

from orchestrator.cli import app
from orchestrator.spec.loader import find_spec
from trainer.__main__ import parse
from trainer.config import TrainConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^\$ (.+)$", README, flags=re.MULTILINE)
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_is_understood(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        assert all(re.search(rf"^{word}:", MAKEFILE, flags=re.MULTILINE) for word in arguments)
    elif program == "sptune":
        parsed, (name, *rest) = get_command(app), arguments
        while hasattr(parsed, "commands"):
            parsed = parsed.commands[name]
            if hasattr(parsed, "commands"):
                name, *rest = rest
        parsed.make_context(name, [*rest])
        if name in ("plan", "launch", "doctor"):
            find_spec(rest[0])
    elif program in ("docker", "sbatch", "kubectl", "ray"):  # what is in these files runs in tests/integration/docker
        (file,) = [word for word in arguments if word.startswith("docker/")]
        assert (ROOT / file).is_file()
        if program == "docker":
            assert arguments[arguments.index("run") : arguments.index("sptune") + 1] == ["run", "--rm", "sptune"]
            known = {command.callback.__name__ for command in app.registered_commands if command.callback}
            assert arguments[arguments.index("sptune") + 1] in known
    elif program == "optuna-dashboard":
        assert arguments == ["sqlite:///sptune-home/studies.db"], "the record of the default home"
    elif arguments[1].startswith("tests.benchmarks."):
        told = subprocess.run(
            [sys.executable, *arguments[:2], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert all(word in told.stdout for word in arguments[2:] if word.startswith("--"))
    else:
        assert [program, *arguments[:2]] == ["python", "-m", "trainer"]
        fields, _ = parse(arguments[2:])
        TrainConfig.from_params({"prompt_init": "mean_pool", **fields})


def test_every_link_of_the_readme_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    headings = {f"#{title.lower().replace(' ', '-')}" for title in re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)}
    assert links
    assert [link for link in links if link not in headings and not (ROOT / link).exists()] == []


def test_ci_says_the_words_of_the_makefile() -> None:
    words = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    assert words == ["check", "test", "test-slow"]
    assert all(re.search(rf"^{word}:", MAKEFILE, flags=re.MULTILINE) for word in words)


def test_the_lock_holds_exact_versions_that_the_dependencies_allow_and_no_address() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", line) for line in lines)
    locked = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        version = locked[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), requirement
        assert metadata.version(requirement.name) == version, f"{requirement.name} is not the locked one"


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for line in re.findall(r'^    "[a-zA-Z][^"]*",.*$', text[: text.index("[project.scripts]")], flags=re.MULTILINE):
        assert re.search(r'",\s+# \w', line), line


def test_the_bundled_backbone_is_small_and_its_card_says_how_it_was_made() -> None:
    weights = ROOT / "trainer/assets/vit_nano_patch4_32.mae.safetensors"
    assert weights.stat().st_size <= 3_000_000
    card = json.loads(weights.with_name("vit_nano_patch4_32.mae.card.json").read_text())
    assert 500_000 <= card["parameters"] <= 1_500_000
    assert len(card["loss_per_epoch"]) == card["recipe"]["epochs"]
    assert card["loss_per_epoch"][-1] < card["loss_per_epoch"][0] / 2
    probe = card["linear_probe_accuracy"]
    assert probe["pretrained"] > probe["untrained"] + 0.1
    for figure in (probe["pretrained"], probe["untrained"]):
        assert f"{100 * figure:.1f} %" in README
    assert f"{card['parameters']:,} parameters" in README
    assert card["command"].startswith("python -m trainer.pretrain")


def test_no_file_of_the_repository_is_large() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    assert [name for name in listed if (ROOT / name).stat().st_size > 3_000_000] == []
