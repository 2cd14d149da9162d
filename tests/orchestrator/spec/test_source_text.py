"""A problem of a spec names its file, line and column, and shows the line with carets below what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.spec.loader import load_spec
from tests.orchestrator.conftest import RAW_SPEC, Sptune


def refusal(folder: Path, text: str | bytes) -> SpecError:
    file = folder / "draft.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError) as refused:
        load_spec(file)
    return refused.value


def told(folder: Path, text: str | bytes) -> str:
    return str(refusal(folder, text)).replace(str(folder / "draft.yaml"), "draft.yaml")


SEVERAL = """\
name: small
tasks: [demo/digit, demo/shapes_loc]
backbones: [vit_nano_patch4_32.mae]
methods:
  - spt_deep
  - liner
fixed: {epochs: 9, warmup_epochs: 1}
space:
  lr: {type: float, low: 0.001, high: 0.1, log: true}
  lr: {type: float, low: 0.001, high: 0.1, values: [1]}
  prompt_length: {type: choice, values: [1]}
  prompt_init: {type: choice, values: [random]}
search:
  trials: 010
  pruner: {type: none}
colour: red
"""

ANSWER = """\
draft.yaml has 6 problems:

draft.yaml:1:1: final: is missing.
  |
1 | name: small
  | ^

draft.yaml:2:9: tasks.0: 'demo/digit' is not a task or group; did you mean 'demo/digits'?
  |
2 | tasks: [demo/digit, demo/shapes_loc]
  |         ^^^^^^^^^^

draft.yaml:6:5: methods.1: 'liner' is not a method; did you mean 'linear'?
  |
6 |   - liner
  |     ^^^^^

draft.yaml:10:3: lr given twice; keep one of them. The first is in line 9.
   |
10 |   lr: {type: float, low: 0.001, high: 0.1, values: [1]}
   |   ^^

draft.yaml:10:44: space.lr.values: 'values' is not a key here; there are type, low, high, log, when. It belongs to type choice.
   |
10 |   lr: {type: float, low: 0.001, high: 0.1, values: [1]}
   |                                            ^^^^^^^^^^^

draft.yaml:14:11: YAML reads 010 as 8; write 10, or "010" if it is text.
   |
14 |   trials: 010
   |           ^^^

draft.yaml:16:1: colour: 'colour' is not a key here; did you mean 'cluster'?
   |
16 | colour: red
   | ^^^^^^^^^^^"""  # noqa: E501


def test_several_problems_are_shown_in_the_order_of_their_lines(tmp_path: Path, sptune: Sptune) -> None:
    assert told(tmp_path, SEVERAL) == ANSWER.replace("6 problems", "7 problems")
    # The command prints the same, on standard error.
    status, out, err = sptune("plan", tmp_path / "draft.yaml", "--home", tmp_path / "home")
    assert (status, out) == (2, "")
    assert err.replace(str(tmp_path / "draft.yaml"), "draft.yaml") == f"error: {told(tmp_path, SEVERAL)}\n"
    # Those who read the sentences get them in the same order.
    assert [problem.partition(" ")[0] for problem in refusal(tmp_path, SEVERAL).problems][:2] == ["final:", "tasks.0:"]


@pytest.mark.parametrize(
    ("text", "place", "line"),
    [
        ("# one\n\nname: [a, b\n", "3:7: is not valid YAML: expected ',' or ']'", "name: [a, b"),
        ("name: 'a\n", "1:7: is not valid YAML: found unexpected end of stream", "name: 'a"),
        ("name:\n\t- a\n", "2:1: is not valid YAML: found character '\\t'", " - a"),
        ("name:a\ntasks: b\n", "2:6: is not valid YAML: mapping values are not allowed here", "tasks: b"),
        ("name: a\r\nname: b\r\n", "2:1: name given twice", "name: b"),
        ("a: &x {b: 1}\nc: *y\n", "2:4: is not valid YAML: found undefined alias", "c: *y"),
        ("name: a\n---\nname: b\n", "2:1: is not valid YAML: it holds several documents", "---"),
        ("- a\n", "1:1: must be a mapping with keys such as name", "- a"),
        (b"\xef\xbb\xbfname: A\n", "1:1: name: must be lower-case letters", "name: A"),
        ("name: A\n".encode("utf-16"), "1:1: name: must be lower-case letters", "name: A"),
        (b"name: a\ntasks: caf\xe9\n", "2:11: is not a text file in UTF-8", "tasks: caf\ufffd"),
        ("name: a\ntasks: \x01\n", "2:8: is not a text file in UTF-8", "tasks: \\x01"),
    ],
)  # fmt: skip
def test_a_mistake_of_yaml_has_its_place(tmp_path: Path, text: str | bytes, place: str, line: str) -> None:
    answer = told(tmp_path, text)
    assert f"\ndraft.yaml:{place}" in answer
    assert f" | {line}\n" in answer


@pytest.mark.parametrize(
    "line",
    [
        # Wide characters take two columns, combining ones none, and a tab one.
        'tasks: ["日本", x]',
        'tasks: ["e\u0301", x]',
        'tasks: ["a\tb", x]',
        # Only the part around the place is shown of a long line.
        f"tasks: [{', '.join(['demo'] * 200)}, x]",
        f"tasks: [x, {', '.join(['demo'] * 200)}]",
        f"tasks: [{', '.join(['demo'] * 200)}, x, {', '.join(['demo'] * 200)}]",
    ],
)
def test_the_carets_are_below_what_is_wrong(tmp_path: Path, line: str) -> None:
    answer = told(tmp_path, f"{line}\n")
    column = line.index("x") + 1
    block = answer[answer.index(f"draft.yaml:1:{column}: tasks.") :].splitlines()
    shown, marked = (each.partition("|")[2] for each in block[2:4])
    columns = shown.replace("日本", "日日本本").replace("\u0301", "")
    assert marked == " " * columns.index("x") + "^"
    assert len(shown) <= 110


def leaves(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value that holds no others."""
    children = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    yield from (leaf for key, value in children for leaf in leaves(value, (*path, key)))
    if not children:
        yield path


SPEC = RAW_SPEC | {
    "train_sizes": [0.5, 1.0],
    "per": [{"method": "linear", "fixed": {"batch_size": 8}, "search": {"trials": 4, "sampler": "random"}}],
    "resources": {"cpus": 1, "backbones": {"vit_nano_patch4_32.mae": {"gpus": 0.5}}},
    "cluster": {"workers": 2},
    "budget": {"max_hours": 3.0},
}


@pytest.mark.parametrize("flow", [False, None])
def test_the_place_of_every_value_is_its_own(tmp_path: Path, flow: bool | None) -> None:
    for path in leaves(SPEC):
        raw = copy.deepcopy(SPEC)
        part = raw
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = {"nonsense": 1}
        text = yaml.safe_dump(raw, default_flow_style=flow, sort_keys=False)
        lines = text.splitlines()
        wrong = next(number for number, line in enumerate(lines, start=1) if "nonsense" in line)

        # The key of a block is in the line above its value. A sentence about a `type` is about all of its part.
        places = {wrong, wrong - 1}
        if path[-1] == "type":
            places |= {number for number, line in enumerate(lines, start=1) if f"{path[-2]}:" in line}
        located = refusal(tmp_path, text).located
        assert any(problem.line in places for problem in located), f"{path}: {located}"
        for problem in located:
            source = lines[problem.line - 1]
            assert f"{problem.line} | {source}" in problem.excerpt
            assert source[problem.column - 1] != " "


def test_a_key_from_an_anchor_or_a_merge_is_shown_where_it_stands(tmp_path: Path) -> None:
    text = SEVERAL.replace("colour: red\n", "per:\n  - &a {method: linear, fixed: {colour: 1}}\n  - *a\n  - {<<: *a}\n")
    places = {(problem.line, problem.column) for problem in refusal(tmp_path, text).located if "colour" in problem.text}
    assert places == {(17, 33)}

    # Of a key whose value stands elsewhere, the key alone is marked.
    alias = "{a: &x {b: 1}, colour: *x}\n"
    problem = next(each for each in refusal(tmp_path, alias).located if each.text.startswith("colour: "))
    assert problem.excerpt.splitlines()[2] == "  |                ^^^^^^"


@pytest.mark.parametrize(
    "value",
    [
        "postgresql+psycopg://u:hun ter2@db/x",
        "http://u:hunter2@h:5000",
        "http://h/?token=hunter2",
        # Its first line alone is no address with a password.
        "http://u:hun\n    ter2@h:5000",
    ],
)
@pytest.mark.parametrize(
    "form", ["cluster: {{mlflow: '{}', workers: x}}\n", "cluster:\n  mlflow: '{}'\n  workers: x\n"]
)
def test_a_line_with_a_secret_is_not_shown(tmp_path: Path, value: str, form: str) -> None:
    answer = told(tmp_path, form.format(value))
    assert "hun" not in answer
    assert "ter2" not in answer
    shown = [line for line in answer.splitlines() if line.partition(" | ")[0].strip().isdecimal()]
    assert not any("mlflow" in line for line in shown)
    assert "cluster.workers: must be a number, got the text 'x'." in answer


def test_what_is_wrong_with_the_home_comes_after_the_file(tmp_path: Path, sptune: Sptune) -> None:
    (tmp_path / "draft.yaml").write_text(SEVERAL.replace("010", "ten"))
    (tmp_path / "file").write_text("")
    status, _, err = sptune("launch", tmp_path / "draft.yaml", "--home", tmp_path / "file")
    *_, last = err.splitlines()
    assert status == 2
    assert last.startswith(f"  home {tmp_path / 'file'}")
    assert err.index("draft.yaml:14:3: search.trials") < err.index("draft.yaml:16:1: colour") < err.index(last)
