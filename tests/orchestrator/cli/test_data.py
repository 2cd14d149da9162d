"""`sptune data`: import, list, verify, show; and a sweep over a task that was imported."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from orchestrator.spec.loader import parse_spec
from tests.orchestrator.conftest import RAW_SPEC, Sptune, new_sweep
from trainer.catalog import BUNDLED, TASKS
from trainer.plain_text import printable


def picture(label: int, seed: int) -> bytes:
    """A noisy square whose brightness is its label's."""
    noise = np.random.default_rng(seed).integers(0, 40, (20, 20, 3))
    buffer = io.BytesIO()
    Image.fromarray((noise + 200 * label).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own images: two classes of thirty."""
    folder = tmp_path_factory.mktemp("sources") / "pets"
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(30):
            (folder / name / f"{i}.png").write_bytes(picture(label, 100 * label + i))
    return folder


def test_the_24_tasks_are_listed_with_what_is_missing_and_where_to_get_it(sptune: Sptune, tmp_path: Path) -> None:
    code, out, _ = sptune("data", "list", "--data", tmp_path)
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("vtab/", "fgvc/", "demo/"))}
    assert [*rows] == [*TASKS]
    for name, row in TASKS.items():
        numbers = [f"{n:,}" for n in (row.num_classes, row.num_train, row.num_val, row.num_test)]
        assert rows[name][1:6] == [row.group, *numbers]
        assert rows[name][6:] == (["at", "first", "use"] if row.group == "demo" else ["—"])
    where = out.partition("Where to get")[2]
    assert all(name in where for name in TASKS if not name.startswith("demo/"))


def test_the_list_fits_a_terminal(sptune: Sptune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = sptune("data", "list", "--data", tmp_path)
    table = out.partition("\nWhere")[0].splitlines()
    assert len(table) == 1 + len(TASKS) and max(map(len, table)) <= 80 and "…" not in out


def test_images_of_ones_own_go_from_import_to_a_table(sptune: Sptune, pets: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    spec = {
        "name": "pets",
        "tasks": ["own/pets"],
        "backbones": [BUNDLED],
        "methods": ["linear"],
        "train_sizes": [{"per_class": 8}, 1.0],
        "fixed": {"epochs": 2, "warmup_epochs": 0, "batch_size": 8, "lr": 0.1},
        "search": {"trials": 1},
        "final": {"seeds": [1]},
    }
    (tmp_path / "pets.yaml").write_text(yaml.safe_dump(spec))
    code, _, err = sptune("launch", tmp_path / "pets.yaml", "--home", home, "--inline")
    assert (code, "own/pets: not in the task store" in err) == (2, True)

    code, out, err = sptune("data", "import", pets, "--task", "own/pets", "--data", home / "data")
    assert code == 0 and out.startswith("own/pets: train 48, val 6, test 6; 2 classes; resampled with seed 0; ")
    assert "60/60" in err
    assert "  warning: test has 6 images: accuracies on it are uncertain by up to 40 points (95 %)" in out
    code, out, _ = sptune("data", "list", "--data", home / "data")
    assert ["own/pets", "own", "2", "48", "6", "6", "resampled"] in [line.split() for line in out.splitlines()]
    code, out, _ = sptune("data", "verify", "--data", home / "data")
    assert code == 0 and out.startswith("own/pets: clean, 60 images, resampled with seed 0, ")
    code, out, _ = sptune("data", "show", "own/pets", "--out", tmp_path / "pets.png", "--data", home / "data")
    assert code == 0 and (tmp_path / "pets.png").read_bytes().startswith(b"\x89PNG")

    code, out, _ = sptune("launch", tmp_path / "pets.yaml", "--home", home, "--inline")
    assert code == 0, out
    assert "8 per class" in out and "4 complete, 0 pruned, 0 failed, 0 missing" in out
    assert out.count("100.0") >= 2, "dark and bright are easily told apart"
    # A table of six images must not look like one of six thousand.
    few = "own/pets: test has 6 images: accuracies on it are uncertain by up to 40 points (95 %)."
    assert few in out.replace("\n", " ")
    for form in ("markdown", "html"):
        assert few in sptune("report", "pets", "--home", home, "--format", form)[1]
    trial = next((home / "sweeps/pets/trials").iterdir()).name
    code, out, _ = sptune("predict", trial, pets / "dog" / "3.png", "--home", home)
    assert code == 0 and "/dog/3.png: dog " in out
    # A sweep stands for the final trial of its study. Of several, one is selected.
    predict = ("predict", "pets", pets / "dog" / "3.png", "--home", home)
    code, out, err = sptune(*predict)
    assert (code, out) == (2, "") and err.startswith("error: pets has 2 studies: ")
    assert "Select one, such as --where 'train_size=" in err
    code, out, _ = sptune(*predict, "--where", "train_size=1.0")
    assert code == 0 and "/dog/3.png: dog " in out
    code, out, err = sptune(*predict, "--where", "method=full")
    assert (code, out) == (2, "") and err.startswith("error: no complete final trial of pets matches; ")


class Answering(io.StringIO):
    """A terminal at which somebody types."""

    def isatty(self) -> bool:
        return True


def test_a_task_is_replaced_only_if_somebody_says_so(
    sptune: Sptune, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("data", "import", pets, "--task", "own/pets", "--data", tmp_path)
    assert sptune(*arguments)[0] == 0
    card = tmp_path / "own/pets/card.json"
    before = card.stat().st_mtime_ns

    code, out, err = sptune(*arguments)
    assert (code, out) == (2, "")
    assert f"error: already in the task store {tmp_path}: own/pets (60 images, " in err
    assert "Add --force to replace, or give your images another name with --task." in err
    monkeypatch.setattr(sys, "stdin", Answering("n\n"))
    code, out, _ = sptune(*arguments)
    assert (code, "own/pets (60 images, " in out) == (1, True)
    assert card.stat().st_mtime_ns == before

    monkeypatch.setattr(sys, "stdin", Answering("y\n"))
    assert sptune(*arguments)[0] == 0
    replaced = card.stat().st_mtime_ns
    assert sptune(*arguments, "--force")[0] == 0
    assert before < replaced < card.stat().st_mtime_ns

    # A damaged task is there to be replaced.
    card.write_text("{")
    assert sptune(*arguments)[0] == 0


def test_a_task_is_deleted_after_saying_which_sweeps_use_it(
    sptune: Sptune, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPTUNE_HOME", str(tmp_path))
    store = tmp_path / "data"
    raw = RAW_SPEC | {"tasks": ["own/pets"], "fixed": {"epochs": 9, "warmup_epochs": 1}}
    new_sweep(parse_spec(raw, "a test"), f"sqlite:///{tmp_path / 'studies.db'}").close()
    for task in ("own/pets", "own/cats"):
        assert sptune("data", "import", pets, "--task", task, "--data", store)[0] == 0

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, out, _ = sptune("data", "rm", "own/pets", "--data", store)
    assert code == 1
    assert out.startswith(f"sweeps of {tmp_path} that use own/pets: small\nDelete own/pets (60 images) from {store}?")
    assert (store / "own/pets/card.json").exists()

    code, out, _ = sptune("data", "rm", "own/pets", "--yes", "--data", store)
    assert (code, out.splitlines()[-1]) == (0, f"deleted own/pets from {store}.")
    assert not (store / "own/pets").exists() and (store / "own/cats/card.json").exists()
    code, out, _ = sptune("data", "rm", "own/cats", "--yes", "--data", store)
    assert (code, out) == (0, f"deleted own/cats from {store}.\n"), "no sweep uses it"

    for task, problem in (("own/pets", "is not in the task store"), ("../data", "'../data' is not a task; ")):
        code, out, err = sptune("data", "rm", task, "--yes", "--data", store)
        assert (code, out, problem in err) == (2, "", True)
    assert store.exists()


NAMES = ("[/INST]", ":smile: a_b|c", "字")


def test_a_class_and_a_folder_are_shown_under_their_names(sptune: Sptune, tmp_path: Path) -> None:
    home, source = tmp_path / "ho[me] :x:", tmp_path / "so[u]rce"
    source.mkdir()
    for split, labels in (("train", [*NAMES] * 5), ("test", ["字"])):
        images = [picture(0, index) for index in range(len(labels))]
        pq.write_table(pa.table({"image": images, "label": labels}), source / f"{split}.parquet")
    code, out, _ = sptune("data", "import", source, "--task", "own/x", "--data", home)
    assert code == 0
    assert str(home) in out
    code, out, _ = sptune("data", "verify", "own/x", "--data", home)
    assert code == 0
    for name in NAMES[:-1]:
        assert printable(name) in out
    code, _, err = sptune("data", "verify", "own/[y]", "--data", home)
    assert code == 2 and f"own/[y] is not in the task store {home}" in err and "--task 'own/[y]'" in err


def test_verify_fails_where_files_were_changed(sptune: Sptune, pets: Path, tmp_path: Path) -> None:
    sptune("data", "import", pets, "--task", "own/pets", "--data", tmp_path)
    place = tmp_path / "own/pets"
    (place / "val.parquet").write_bytes((place / "test.parquet").read_bytes())
    code, out, _ = sptune("data", "verify", "own/pets", "--data", tmp_path)
    assert code == 1 and out.startswith("own/pets: wrong, ") and "the files were changed" in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("import", "/no/such/place"), "/no/such/place: there is no such file or folder."),
        (("import", "{pets}"), "give them a name, such as --task own/pets."),
        (("import", "{pets}", "--task", "pets"), "'pets' is not a task"),
        (("import", "{pets}", "--form", "zip"), "'zip' is no form; there are "),
        (("verify",), "holds no task; `sptune data list` says where to get them."),
        (("verify", "vtab/dtd"), "vtab/dtd is not in the task store"),
        (("show", "vtab/dtd"), "vtab/dtd is not in the task store"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: tuple[str, ...], problem: str, sptune: Sptune, pets: Path, tmp_path: Path
) -> None:
    code, out, err = sptune("data", *(part.format(pets=pets) for part in arguments), "--data", tmp_path)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ") and problem in err
    assert not list(tmp_path.rglob("*.parquet"))
