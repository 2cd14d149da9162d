"""What the documents say is so: commands parse, links resolve, the lock fits, CI uses the words of the Makefile."""

from __future__ import annotations

import ast
import hashlib
import importlib
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

import search_spaces
from orchestrator.cli import app
from orchestrator.spec.loader import find_spec, load_spec
from orchestrator.spec.reference import BEGIN, render_reference
from trainer.__main__ import parse
from trainer.config import TrainConfig

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(
        part.startswith(".") or part in ("shared", "build", "sptune-home") for part in path.relative_to(ROOT).parts
    )
)
MAKEFILE = (ROOT / "Makefile").read_text()
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    """Return a document's code blocks of one language."""
    return [text for found, text in FENCE.findall(path.read_text()) if found == language]


def prose(path: Path) -> str:
    """Return a document without its code blocks."""
    return FENCE.sub("", path.read_text())


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


COMMANDS = [
    pytest.param(path, command, id=f"{named(path)}: {command}")
    for path in DOCUMENTS
    for block in blocks(path, "console")
    for command in re.findall(r"^\$ (.+)$", block, flags=re.MULTILINE)
]
CODE = [
    pytest.param(code, id=f"{named(path)} {i}") for path in DOCUMENTS for i, code in enumerate(blocks(path, "python"))
]
SPECS = [
    pytest.param(text, id=f"{named(path)} {i}")
    for path in DOCUMENTS
    for i, text in enumerate(blocks(path, "yaml"))
    if re.search(r"^name:", text, flags=re.MULTILINE)
]


def test_the_documents_are_these() -> None:
    expected = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    expected |= {f"{folder}/README.md" for folder in ("orchestrator", "trainer", "search_spaces", "docker")}
    assert {named(path) for path in DOCUMENTS} - {"tests/benchmarks/README.md"} == expected


def test_a_table_has_the_environment_variables() -> None:
    listed = {*re.findall(r"`(SPTUNE_\w+)`", (ROOT / "search_spaces/README.md").read_text())}
    code = "".join(path.read_text() for room in ("orchestrator", "trainer") for path in (ROOT / room).rglob("*.py"))
    # An example of a user's own.
    assert {*re.findall(r"SPTUNE_[A-Z]+\b", code)} - {"SPTUNE_WEBHOOK"} == listed


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8_000


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_every_command_is_understood(document: Path, command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        assert arguments
        variables = {word.partition("=")[0] for word in arguments if "=" in word}
        assert all(re.search(rf"^{name} \?=", MAKEFILE, flags=re.MULTILINE) for name in variables)
        targets = [word for word in arguments if "=" not in word]
        assert all(re.search(rf"^{word}:", MAKEFILE, flags=re.MULTILINE) for word in targets)
    elif program == "sptune":
        check_sptune(document, arguments)
    elif command == "kubectl apply -k overlay":  # tests/integration/docker/test_kuberay.py builds it
        pass
    elif program in ("docker", "sbatch", "kubectl", "ray"):  # what is in these files runs in tests/integration/docker
        (file,) = [word for word in arguments if word.startswith("docker/")]
        assert (ROOT / file).is_file()
        if program == "docker":
            assert arguments[arguments.index("run") : arguments.index("sptune") + 1] == ["run", "--rm", "sptune"]
            known = {command.callback.__name__ for command in app.registered_commands if command.callback}
            assert arguments[arguments.index("sptune") + 1] in known
    elif "nvidia-cuda-mps-control" in command:  # what workers look for is in tests/orchestrator/environment/test_mps.py
        assert command in ("nvidia-cuda-mps-control -d", "echo quit | nvidia-cuda-mps-control")
    elif program == "optuna-dashboard":
        assert arguments == ["sqlite:///sptune-home/studies.db"], "the study database of the default home"
    elif program == "pytest":
        files = [word for word in arguments if not word.startswith("-")]
        assert files and all((ROOT / file).exists() for file in files)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        # From a checkout: sptune is on no package index.
        (extra,) = re.findall(r"^\.\[(\w+)\]$", "\n".join(arguments), flags=re.MULTILINE)
        assert arguments[0] == "install" and extra in extras
    else:
        assert [program, arguments[0]] == ["python", "-m"]
        check_module(arguments[1], arguments[2:])


def check_sptune(document: Path, arguments: list[str]) -> None:
    """Parse a command line of sptune; the spec that it names must ship, or stand in the same document."""
    if arguments == ["--version"]:
        assert metadata.version("sptune")
        return

    parsed, (name, *rest) = get_command(app), arguments
    while hasattr(parsed, "commands"):
        parsed = parsed.commands[name]
        if hasattr(parsed, "commands"):
            name, *rest = rest
    parsed.make_context(name, [*rest])

    files = [match[1] for text in blocks(document, "yaml") if (match := re.match(r"# (\w+\.yaml)\b", text))]
    if name in ("plan", "replay", "launch", "doctor") and rest and rest[0] not in files:
        find_spec(rest[0])


def check_module(module: str, arguments: list[str]) -> None:
    """Check a command line of a module that is run as a program."""
    if module == "trainer":
        fields, _ = parse(arguments)
        TrainConfig.from_params({"prompt_init": "mean_pool", **fields})
    elif module == "orchestrator.spec.reference":
        assert arguments == []
    else:
        assert module.startswith(("tests.benchmarks.", "trainer."))
        shown = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert all(word in shown.stdout for word in arguments if word.startswith("--"))


@pytest.mark.parametrize("code", CODE)
def test_python_in_the_documents_compiles_and_imports_what_exists(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("text", SPECS)
def test_a_spec_in_the_documents_is_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    load_spec(file)


def test_the_readmes_first_spec_runs_on_two_cores() -> None:
    (text,) = blocks(ROOT / "README.md", "yaml")
    assert text.startswith("# digits.yaml: ") and "\nname: digits\n" in text
    assert "gpus" not in text and "max_concurrent: 2" in text


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_file_that_a_document_names_exists(path: Path) -> None:
    """Paths in code spans such as `orchestrator/sweep/sweep.py`, seen from the root or from the document."""
    spans = re.findall(r"`((?:[\w.-]+/)+[\w.-]*\.(?:py|yaml|sh|md|json|env))(?:::\w+)?`", prose(path))
    assert [span for span in spans if not (ROOT / span).exists() and not (path.parent / span).exists()] == []


def test_the_spec_reference_is_generated_from_the_schema() -> None:
    page = Path(search_spaces.__path__[0]) / "README.md"
    generated = page.read_text().partition(BEGIN)[2].strip()
    assert generated == render_reference().strip(), "run `make docs` to refresh search_spaces/README.md"


def test_the_reading_guides_name_every_table_row() -> None:
    from trainer.catalog import METHODS, TASKS

    guide = (ROOT / "trainer/README.md").read_text()
    assert [name for name in [*METHODS, *TASKS] if f"`{name.partition('/')[2] or name}`" not in guide] == []


def test_the_changelog_has_the_current_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == "Unreleased" and metadata.version("sptune") in headings


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


def test_the_three_big_libraries_have_upper_bounds_that_the_lock_meets() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    requirements = [Requirement(text) for text in texts]
    bounded = [requirement for requirement in requirements if requirement.name in ("ray", "optuna", "mlflow")]
    assert len(bounded) == 5
    for requirement in bounded:
        assert any(part.operator == "<" for part in requirement.specifier), requirement
        assert requirement.specifier.contains(metadata.version(requirement.name)), requirement


def test_every_dependency_has_its_reason_and_names_files_that_exist() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for line in re.findall(r'^    "[a-zA-Z][^"]*",.*$', text[: text.index("[project.scripts]")], flags=re.MULTILINE):
        assert re.search(r'",\s+# \w', line), line
        for path in re.findall(r"(?:trainer|orchestrator|docker)/[\w/.]*\w", line):
            assert (ROOT / path).exists(), line
    for path in tomllib.loads(text)["tool"]["ruff"]["lint"]["per-file-ignores"]:
        assert (ROOT / path).is_file(), path


def test_the_bundled_backbone_is_small_and_its_card_says_how_it_was_made() -> None:
    guide = (ROOT / "trainer/README.md").read_text()
    weights = ROOT / "trainer/assets/vit_nano_patch4_32.mae.safetensors"
    assert weights.stat().st_size <= 3_000_000
    card = json.loads(weights.with_name("vit_nano_patch4_32.mae.card.json").read_text())
    assert 500_000 <= card["parameters"] <= 1_500_000
    assert len(card["loss_per_epoch"]) == card["recipe"]["epochs"]
    assert card["loss_per_epoch"][-1] < card["loss_per_epoch"][0] / 2
    probe = card["linear_probe_accuracy"]
    assert probe["pretrained"] > probe["untrained"] + 0.1
    for figure in (probe["pretrained"], probe["untrained"]):
        assert f"{100 * figure:.1f} %" in guide
    assert f"{card['parameters']:,} parameters" in guide
    assert card["command"].startswith("python -m trainer.pretrain")
    assert card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_no_file_of_the_repository_is_large() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    assert [name for name in listed if (ROOT / name).stat().st_size > 3_000_000] == []
