"""Laws of the layout: who may import whom, how large a file may be, and how much air and explanation it has."""

from __future__ import annotations

import ast
import functools
import io
import itertools
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from trainer.plain_text import counted

ROOT = Path(__file__).parent.parent
PACKAGES = ("trainer", "orchestrator")
PRODUCT = sorted(path for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py"))

# Rooms from the ground up: a room imports only itself and rooms before it. A room is a folder or a file of the package;
# `__init__` is the package's own.
FLOORS = {
    "trainer": """
        plain_text redaction terminal progress_bar catalog names metric_names machine phase validation method_rules
        config first_search run_folder storage model data prompt_init methods training plots inference pretrain
        __init__ __main__
    """,
    "orchestrator": """
        errors redaction spec study sweep environment drivers report figures report_page tracking served doctor
        launch __init__ cli __main__
    """,
}

# The folders and files that may import a library.
HOMES_OF_LIBRARIES = {
    "ray": ("orchestrator/drivers/ray/",),
    "optuna": ("orchestrator/study/storage/", "orchestrator/study/advisor.py", "orchestrator/study/importance.py"),
    "mlflow": ("orchestrator/tracking/",),
}

# What runs in a worker, or trains in this process: it may load torch.
WORKER = {"orchestrator.drivers.trial_runner", "orchestrator.drivers.inline"}

MAX_CODE_LINES = 250
MIN_COMMENT_SHARE = 0.03
MIN_BLANK_SHARE = 0.08
MAX_PACKED_ASSIGNMENTS = 10


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """The modules that a file imports, at its top, within functions, or for types alone."""
    modules = {module_of(file) for file in PRODUCT}
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)} imports relatively"
            within = {f"{node.module}.{name.name}" for name in node.names}
            # `from package import module` names a module; `from module import function` does not.
            found |= (within & modules) or {str(node.module)}
    return frozenset(found)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("library", HOMES_OF_LIBRARIES)
def test_each_big_library_has_one_home(library: str) -> None:
    users = [short(path) for path in PRODUCT if any(name.partition(".")[0] == library for name in imports(path))]
    assert users
    assert [user for user in users if not user.startswith(HOMES_OF_LIBRARIES[library])] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_between_rooms_run_one_way(package: str) -> None:
    floor = {room: index for index, room in enumerate(FLOORS[package].split())}
    wrong = []
    for path in ROOT.glob(f"{package}/**/*.py"):
        room = room_of(module_of(path))
        assert room in floor, f"{short(path)} is in a room that has no floor: add {room!r} to FLOORS"
        targets = [name for name in imports(path) if name.partition(".")[0] == package]
        wrong += [f"{short(path)} imports {name}" for name in targets if floor[room_of(name)] > floor[room]]
    assert wrong == []


def test_every_text_file_and_pipe_names_its_encoding() -> None:
    """That of the locale may lack a letter."""
    wrong = []
    for path in PRODUCT:
        for call in ast.walk(tree_of(path)):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            keywords = {keyword.arg for keyword in call.keywords}
            modes = {argument.value for argument in call.args if isinstance(argument, ast.Constant)}
            is_text = name in ("read_text", "write_text") or (
                name == "open" and modes & {"r", "w", "a", "x", "r+", "w+"}
            )
            if (is_text and "encoding" not in keywords) or (
                keywords & {"text", "universal_newlines"} and name in ("run", "Popen", "check_output")
            ):
                wrong.append(f"{short(path)}:{call.lineno}")
    assert wrong == []


def test_files_import_each_other_in_no_circle() -> None:
    modules = {module_of(path): imports(path) - {module_of(path)} for path in PRODUCT}
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_trainer_has_never_heard_of_the_orchestrator() -> None:
    users = [
        short(path)
        for path in ROOT.glob("trainer/**/*.py")
        if any(name.startswith("orchestrator") for name in imports(path))
    ]
    assert users == []


def test_no_hyper_parameter_is_known_to_the_orchestrator() -> None:
    for path in ROOT.glob("orchestrator/**/*.py"):
        for word in ("prompt_length", "prompt_init"):
            assert word not in path.read_text(), f"{word} stands in {short(path)}"


def loaded_by(modules: set[str], libraries: set[str]) -> str:
    """Import modules in a process of their own, and name the first that loads one of these libraries."""
    code = f"""
import importlib, sys
for name in {sorted(modules)}:
    importlib.import_module(name)
    if loaded := {libraries} & sys.modules.keys():
        sys.exit(f"importing {{name}} loads {{loaded}}")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stderr.strip()


def test_nothing_above_the_worker_imports_torch() -> None:
    modules = {module_of(path) for path in ROOT.glob("orchestrator/**/*.py")}
    assert modules > WORKER
    assert loaded_by(modules - WORKER, {"torch"}) == ""


def test_the_command_line_loads_no_big_library() -> None:
    assert (
        loaded_by({"orchestrator.cli"}, {"torch", "ray", "optuna", "mlflow", "pyarrow", "numpy", "pydantic", "yaml"})
        == ""
    )


def docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    """Strings that stand alone: of modules, classes and functions, and below attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node


def code_lines(path: Path) -> int:
    """Lines without blank ones, comments and docstrings."""
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type not in no_code:
            lines |= {*range(token.start[0], token.end[0] + 1)}
    for node in docstrings(tree_of(path)):
        assert node.end_lineno is not None
        lines -= {*range(node.lineno, node.end_lineno + 1)}
    return len(lines)


def test_a_file_has_one_job() -> None:
    too_long = {short(path): lines for path in PRODUCT if (lines := code_lines(path)) > MAX_CODE_LINES}
    assert too_long == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_comments_of_their_own_lines_say_why(package: str) -> None:
    lines = [line.strip() for path in ROOT.glob(f"{package}/**/*.py") for line in path.read_text().splitlines()]
    comments = [line for line in lines if line.startswith("#")]
    assert len(comments) / len(lines) >= MIN_COMMENT_SHARE, f"{len(comments)} of {len(lines)} lines"


def body_lines(path: Path) -> set[int]:
    """The lines of all function bodies, docstrings left out."""
    lines: set[int] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines |= {*range(node.body[0].lineno, (node.end_lineno or 0) + 1)}
    for node in docstrings(tree_of(path)):
        lines -= {*range(node.lineno, (node.end_lineno or 0) + 1)}
    return lines


@pytest.mark.parametrize("package", PACKAGES)
def test_the_steps_of_a_function_are_set_apart(package: str) -> None:
    total = blank = 0
    for path in ROOT.glob(f"{package}/**/*.py"):
        text = path.read_text().splitlines()
        lines = body_lines(path)
        total += len(lines)
        blank += sum(not text[number - 1].strip() for number in lines)
    assert blank / total >= MIN_BLANK_SHARE, f"{blank} of {total} lines"


def packed_assignments(path: Path) -> Iterator[str]:
    """Assignments `a, b = x, y` that would do the same as two: neither value reads what the other one's name gets."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        value = node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            given = {ast.unparse(name) for name in target.elts}
            read = {ast.unparse(part) for part in ast.walk(value) if isinstance(part, ast.expr)}
            if not given & read:
                yield f"{short(path)}:{node.lineno}"


@pytest.mark.parametrize("package", PACKAGES)
def test_an_assignment_has_one_value_unless_several_belong_together(package: str) -> None:
    packed = [place for path in ROOT.glob(f"{package}/**/*.py") for place in packed_assignments(path)]
    assert len(packed) <= MAX_PACKED_ASSIGNMENTS, packed


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))


def test_cores_and_memory_are_counted_in_one_place() -> None:
    """The machine's own numbers are wrong under an affinity, a control group or Slurm."""
    counts = ("cpu_count", "process_cpu_count", "sched_getaffinity", "virtual_memory", "SC_PHYS_PAGES")
    users = {
        short(path)
        for path in PRODUCT
        for call in calls(path)
        if any(count in ast.unparse(call.func) or count in ast.unparse(call) for count in counts)
    }
    # The doctor names both the limit and what the machine has.
    assert users == {"trainer/machine.py", "orchestrator/doctor/machine.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_tests_mirror_the_package(package: str) -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in ROOT.glob(f"tests/{package}/**/test_*.py")}
    assert folders
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder).is_dir()] == []


@pytest.mark.parametrize("path", PRODUCT, ids=short)
def test_nothing_that_is_read_can_run_code(path: Path) -> None:
    assert not imports(path) & {"cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for call in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)):
        told = ast.unparse(call)
        if told.startswith("torch.load("):
            assert "weights_only=True" in told
        if told.startswith(("np.load(", "numpy.load(")):
            assert "allow_pickle=True" not in told
        assert not told.startswith(("yaml.load(", "yaml.unsafe_load("))
        # CIFAR-100's own archive is a pickle: read by an unpickler that builds plain values and refuses all else.
        assert not told.startswith(("pickle.load(", "pickle.loads("))
        assert not told.startswith(("eval(", "exec(", "os.system("))
        assert "shell=True" not in told


COUNT_NOUNS = [
    "trial",
    "study",
    "figure",
    "task",
    "image",
    "file",
    "class",
    "run",
    "checkpoint",
    "error",
    "problem",
    "draw",
    "pair",
    "prompt",
    "layer",
    "token",
    "backbone",
    "label",
    "record",
    "row",
    "seed",
    "worker",
    "epoch",
    "byte",
    "point",
    "node",
    "digit",
    "number",
    "object",
    "photograph",
    "shard",
    "kind",
    "step",
    "time",
    "sweep",
    "method",
    "GPU",
    "CPU",
]


def test_a_number_stands_before_its_noun_by_counted_alone() -> None:
    """Otherwise one is `1 figures`. What is counted in a table of names of classes is a name, not a sentence."""
    plurals = [counted(2, noun).partition(" ")[2] for noun in COUNT_NOUNS]
    before_plural = re.compile(rf"^ (?:[a-z]+ )?(?:{'|'.join(plurals)})\b")
    is_number = re.compile(r"^(len|sum|min\w*)\(|^count|\.count\(|(^|\.)num(_|$)|\.(trials|epochs|draw|seeds)$")

    wrong = []
    for path in PRODUCT:
        if path.name == "vtab_labels.py":
            continue
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.JoinedStr):
                continue
            for value, text in itertools.pairwise(node.values):
                is_text = isinstance(text, ast.Constant) and before_plural.match(str(text.value))
                if isinstance(value, ast.FormattedValue) and is_text and is_number.search(ast.unparse(value.value)):
                    wrong.append(f"{short(path)}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []
