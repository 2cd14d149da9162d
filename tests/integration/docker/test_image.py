"""docker/Dockerfile: its own lines, run here where there is no Docker."""

from __future__ import annotations

import re
import subprocess
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.integration.docker.files import BIN, DOCKER, ROOT, instructions, run_lines, shell

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NEEDS = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["cluster"]]
TO_BUILD = PROJECT["build-system"]["requires"]
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = dict(re.findall(r"^([^#\s]\S*)==(\S+)$", LOCK, flags=re.MULTILINE))


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A folder with what the image's stages have copied, and the file of needs that the first one writes."""
    for name in ("pyproject.toml", "requirements.lock", "README.md", "LICENSE", *("trainer", "orchestrator")):
        (tmp_path / name).symlink_to(ROOT / name)
    [line] = run_lines("tomllib")
    done = shell(line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with pip and nothing else."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=True)
    return folder


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([BIN / "hadolint", DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_is_installed_is_what_running_needs_and_no_tool_of_developers(build: Path) -> None:
    assert (build / "needs.txt").read_text().splitlines() == [*NEEDS, *TO_BUILD]
    tools = {Requirement(text).name for text in PROJECT["project"]["optional-dependencies"]["dev"]}
    assert tools.isdisjoint(Requirement(text).name for text in NEEDS)


@pytest.mark.slow
def test_the_lock_has_all_that_is_needed_and_its_versions_fit_together(build: Path) -> None:
    """Offline and dry: pip finds every need installed here, at the version of the lock, or it fails."""
    [line] = run_lines("--requirement needs.txt")
    done = shell(line.replace("pip install", "pip install --dry-run --no-index"), cwd=build, TORCH_INDEX="")
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout


def wheel(index: Path, name: str, version: str) -> None:
    """A wheel of nothing, in an index that pip reads from a folder."""
    (index / name).mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(index / name / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    links = "".join(f'<a href="{path.name}">{path.name}</a>' for path in sorted((index / name).glob("*.whl")))
    (index / name / "index.html").write_text(f"<html><body>{links}</body></html>")


@pytest.mark.slow
def test_a_build_without_cuda_takes_torch_and_torchvision_from_the_given_index_at_the_locks_versions(
    build: Path, environment: Path
) -> None:
    index = build / "index"
    for name in ("torch", "torchvision"):
        for version in ("0.1.0", LOCKED[name], "99.0.0"):
            wheel(index, name, f"{version}+cpu")
    [line] = run_lines("--requirement needs.txt")
    # The rest of the line asks for everything else, of which nothing is here.
    dry = line.replace("pip install", f"{environment}/bin/pip install --dry-run", 1)
    done = shell(dry.replace("&& pip install", "&& echo pip install"), cwd=build, TORCH_INDEX=f"file://{index}")
    assert done.returncode == 0, done.stderr
    chosen = re.findall(r"^Would install (.+)$", done.stdout, flags=re.MULTILINE)
    assert chosen == [f"torch-{LOCKED['torch']}+cpu torchvision-{LOCKED['torchvision']}+cpu"]


@pytest.mark.slow
def test_an_installation_without_cuda_is_the_lock_without_its_packages(build: Path, environment: Path) -> None:
    index = build / "index"
    for name in ("torch", "torchvision"):
        for version in ("0.1.0", LOCKED[name], "99.0.0"):
            wheel(index, name, f"{version}+cpu")
    make = ["make", "--dry-run", "--always-make", "install", f"TORCH_INDEX=file://{index}"]
    lines = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    [first] = [line for line in lines if "--index-url" in line]
    [without] = [line for line in lines if line.startswith("grep")]

    dry = first.replace(".venv/bin/pip install --quiet", f"{environment}/bin/pip install --dry-run")
    done = shell(f"{dry} && {without.replace('.venv/', '')} && cat without-cuda.lock", cwd=build)
    assert done.returncode == 0, done.stderr
    assert f"Would install torch-{LOCKED['torch']}+cpu torchvision-{LOCKED['torchvision']}+cpu\n" in done.stdout
    kept = {*re.findall(r"^([^#\s]\S*)==\S+$", done.stdout, flags=re.MULTILINE)}
    assert {name.split("-")[0] for name in LOCKED.keys() - kept} == {"cuda", "nvidia", "triton"}


@pytest.mark.slow
def test_the_wheel_has_every_module_space_and_asset(build: Path, environment: Path) -> None:
    (build / "search_spaces").symlink_to(ROOT / "search_spaces")
    source, wheels = build / "source", build / "wheels"
    subprocess.run(
        ["git", "-C", ROOT, "archive", "--format=tar", f"--output={build / 'source.tar'}", "HEAD"], check=True
    )
    source.mkdir()
    subprocess.run(["tar", "--extract", f"--directory={source}", f"--file={build / 'source.tar'}"], check=True)
    [line] = run_lines("pip wheel")
    done = shell(line.replace("/wheels", str(wheels)), cwd=source)
    assert done.returncode == 0, done.stderr
    [install] = run_lines("/wheels/*.whl")
    done = shell(install.replace("/wheels", str(wheels)).replace("pip ", f"{environment}/bin/pip "), cwd=build)
    assert done.returncode == 0, done.stderr
    [installed] = (environment / "lib").glob("python*/site-packages")
    for package in ("trainer", "orchestrator", "search_spaces"):
        tracked = [
            path.relative_to(source) for path in (source / package).rglob("*") if path.suffix in (".py", ".yaml", "")
        ]
        assert [name for name in tracked if not (installed / name).exists()] == []
    assert (installed / "trainer/assets/vit_nano_patch4_32.mae.safetensors").is_file()
    assert (environment / "bin/sptune").is_file()


def test_every_file_that_is_copied_is_there_and_not_ignored_and_every_package_is_copied() -> None:
    copied = {
        name
        for keyword, rest in instructions()
        if keyword == "COPY" and "--from" not in rest
        for name in rest.split()[:-1]
    }
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().split("\n")
    assert ignore[1] == "*"
    assert copied == {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    packages = {each.rstrip("*") for each in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= copied


def test_the_source_is_below_the_layer_of_the_packages() -> None:
    """An edit of a module installs nothing again."""
    order = [rest for _, rest in instructions()]
    packages = next(place for place, rest in enumerate(order) if "--requirement needs.txt" in rest)
    sources = [place for place, rest in enumerate(order) if rest.startswith(("trainer ", "orchestrator "))]
    assert sources and min(sources) > packages


def test_it_runs_as_a_user_without_rights_and_can_be_asked_how_it_is() -> None:
    by_keyword = dict(instructions())  # the last of each
    assert re.fullmatch(r"[1-9]\d*", by_keyword["USER"])
    [users] = run_lines("useradd")
    assert f"--uid {by_keyword['USER']} " in users
    assert by_keyword["HEALTHCHECK"].endswith('CMD ["sptune", "doctor"]')
    folders = re.search(r"install --directory --owner=sptune --group=sptune (.+)$", users)
    environment = dict(re.findall(r"(\w+)=(\S+)", by_keyword["ENV"]))
    assert folders is not None
    assert environment["SPTUNE_CACHE"] in folders[1].split(), "a volume there belongs to who is there at its first use"
    assert environment["HF_HOME"].startswith(environment["SPTUNE_CACHE"])


def test_all_stages_have_one_base_with_a_python_that_is_allowed() -> None:
    [base] = {rest.split()[0] for keyword, rest in instructions() if keyword == "FROM"} - {"packages"}
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)
    assert version is not None
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(version[1])
