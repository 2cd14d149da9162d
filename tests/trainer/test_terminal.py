"""Whatever a name consists of, a terminal shows all of it, and nothing of it is obeyed."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from trainer.plain_text import printable
from trainer.progress_bar import progress_bar
from trainer.terminal import SafeStream, TextConsole, open_terminal, shown, write_document

ROOT = Path(__file__).parents[2]
NAMES = (
    "[me]", "[/INST]", "[red]x[/red]", "[/]", "[link=http://x]y", ":smile:", "100 % of 3.5 'x' None True", "a\\[b]",
    "/data/ho[me]/with space/a", "字漢 é", "x" * 300, "*a* _b_ `c`", "'quoted' \"twice\"", "$HOME {x} %s",
)  # fmt: skip
CONTROLS = {
    "\x1b[2J": r"\x1b[2J", "a\rb": r"a\rb", "a\nb": r"a\nb", "\x07": r"\x07", "\x9b31m": r"\x9b31m", "a\tb": r"a\tb",
    "a\u202eb": r"a\u202eb", "\u2066x": r"\u2066x", "a\u2028b": r"a\u2028b", "caf\udce9": r"caf\udce9", "\x00": r"\x00",
    "\ufeffx": r"\ufeffx", "\U000e0041": r"\U000e0041",
}  # fmt: skip


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> TextConsole:
    monkeypatch.setenv("COLUMNS", "400")
    console = TextConsole()
    console.file = io.StringIO()
    return console


def read(console: TextConsole) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("name", "expected"), [*((name, name) for name in NAMES), *CONTROLS.items()])
def test_a_name_comes_out_whole_wherever_it_is_printed(name: str, expected: str, console: TextConsole) -> None:
    table = Table(title=name, box=None)
    table.add_column(name)
    table.add_row(name)
    table.add_row(shown(name, "red"))

    console.print(f"in {name}")
    console.print(shown(f"in {name}", "red"), soft_wrap=True)
    console.print(table)
    console.print(console.status(f"in {name}").renderable)
    assert read(console).count(expected) == 7
    assert "\x1b" not in read(console), "no colour, and nothing that the terminal obeys"


@pytest.mark.parametrize("name", ["[me]", "[/INST]", ":smile:", "\x1b[2J"])
def test_a_bar_shows_its_description_as_it_is(name: str) -> None:
    bar = progress_bar()
    bar.console.file = io.StringIO()
    bar.add_task(name)
    bar.console.print(bar.get_renderable())
    assert printable(name) in bar.console.file.getvalue()


@pytest.mark.parametrize("width", ["1", "20", "80"])
def test_a_path_or_command_to_copy_is_not_broken(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    console = TextConsole()
    console.file = io.StringIO()
    command = "sptune resume '/home/ada lovelace/" + "long/" * 40 + "spec.yaml'"
    console.print(f"Run `{command}` to continue.")
    assert read(console) == f"Run `{command}` to continue.\n"


def test_words_of_other_scripts_and_emoji_are_text() -> None:
    for text in ("ملف\u200cها", "👩\u200d🔬", "a\u00a0b", "\ue000", "é", "字"):
        assert printable(text) == text
    for text, expected in CONTROLS.items():
        assert printable(text) == expected
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


SHOW = """
import sys
from rich.table import Table
from trainer.progress_bar import progress_bar
from trainer.terminal import TextConsole, open_terminal, write_document
open_terminal()
name = "caf\\u00e9 \\u5b57 \\u2014 \\udce9 [me]"
print(name)
print(name, file=sys.stderr)
table = Table("name")
table.add_row(name)
console = TextConsole()
console.print(name, table)
with console.status(name), progress_bar() as bar:
    bar.add_task(name)
write_document(name)
"""
LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "POSIX": {"LANG": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "strict UTF-8": {"PYTHONIOENCODING": "utf-8:strict"},
    "dumb": {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "20"},
    "no width": {"COLUMNS": "0", "LINES": "0", "FORCE_COLOR": "1"},
}


@pytest.mark.parametrize("name", LOCALES)
def test_every_terminal_can_be_printed_to(name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    command = [sys.executable, "-c", SHOW]
    done = subprocess.run(command, env=environment | LOCALES[name], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert b"caf" in done.stderr
    assert done.stdout.endswith("café 字 — \\udce9 [me]".encode()), "a document is UTF-8 everywhere"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_error_and_its_number_goes_to_no_file(closed: str, tmp_path: Path) -> None:
    code = SHOW + f"\nassert open({str(tmp_path / 'studies.db')!r}, 'w', encoding='utf-8').fileno() > 2\n"
    code += f"open({str(tmp_path / 'done')!r}, 'w', encoding='utf-8')\n"
    script = f'exec "$0" -c "$1" {closed}'
    done = subprocess.run(["sh", "-c", script, sys.executable, code], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "done").exists()


def test_a_stream_shows_no_secret_and_is_otherwise_the_stream() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    safe = SafeStream(stream)
    assert safe.write("é at http://u:hunter2@h\n") == 24
    safe.writelines(["password=hunter2\n"])
    safe.flush()
    assert stream.buffer.getvalue() == b"\\xe9 at http://u:***@h\npassword=***\n"
    assert (safe.encoding, safe.isatty()) == ("ascii", False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_is_full_is_a_sentence() -> None:
    code = "from trainer.terminal import SafeStream; import sys; s = SafeStream(sys.stdout)\n"
    code += "try:\n    s.write('x'); s.flush()\nexcept OSError as e:\n    print(e, file=sys.stderr)"
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert done.stderr.startswith("the output cannot be written: No space left on device.\n")


def test_a_trace_that_nobody_expected_shows_no_secret() -> None:
    code = "from trainer.terminal import open_terminal; open_terminal()\nraise OSError('s3://k:hunter2@b/x is away')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "OSError: s3://k:***@b/x is away" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_document_goes_to_a_stream_of_text_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", text := io.StringIO())
    write_document("a\nb\x1b é")
    assert text.getvalue() == "a\nb\\x1b é"
    monkeypatch.undo()
    open_terminal()
    write_document("é")
    assert capsys.readouterr().out == "é"


def test_one_file_makes_consoles_and_text_of_the_terminal() -> None:
    """Elsewhere, rich would read markup in the text of a user."""
    makers = {"Console", "Text", "TextColumn", "from_markup", "render_markup", "rprint"}
    for package in ("trainer", "orchestrator"):
        for file in (ROOT / package).rglob("*.py"):
            if file == ROOT / "trainer/terminal.py":
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                    assert name not in makers, f"{file}:{node.lineno} calls {name}"
