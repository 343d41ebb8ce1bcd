"""The core against recorded kernels, through the command that prints the figures.

The files under tests/data are parts of larger sets of the same form; each says under ``obtained`` how it was made.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.differential.__main__ import main
from tests.differential.tree import DATA, FILES, arguments

ROOT = Path(__file__).parents[1]
LAYOUTS = ROOT / "tests" / "data" / "kernel612_boot_config.json.gz"
SEQUENCES = ROOT / "tests" / "data" / "kernel612_sequences.json.gz"
LEGAL_SEQUENCES = ROOT / "tests" / "data" / "kernel612_sequences_legal_sample.json.gz"


def _data(path: Path) -> dict[str, Any]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found = json.load(file)
    assert isinstance(found, dict)
    return found


def _altered(path: Path, tmp_path: Path, alter: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the data, uncompressed, with one thing changed."""
    data = _data(path)
    alter(data)
    copy = tmp_path / "altered.json"
    copy.write_text(json.dumps(data), encoding="utf-8")
    return copy


def _last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("path", [LAYOUTS, SEQUENCES, LEGAL_SEQUENCES], ids=["layouts", "sequences", "legal ones"])
def test_data_says_where_it_comes_from(path: Path) -> None:
    """Each file keeps the note on how it was obtained."""
    assert "6.12" in _data(path)["obtained"]


def test_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything Linux 6.12 computes from 17 processors' CPUID is what we compute; 12 truncated dumps are refused."""
    assert main(["layouts", str(LAYOUTS)]) == 0
    assert capsys.readouterr().out == "layouts: 29 rows (12 truncated), 0 differ\n"


@pytest.mark.parametrize(
    ("prefix", "figure"),
    [
        pytest.param("founding:", "sequences: 69 rows, 0 differ", id="the founding mail's calls"),
        pytest.param("host nm without permission", "sequences: 7 rows, 0 differ", id="#NM of a host task"),
        pytest.param("prctl idx sweep", "sequences: 7 rows, 0 differ", id="every number for arch_prctl"),
        pytest.param("uabi masks", "sequences: 2 rows, 0 differ", id="state out and in"),
        pytest.param("sigaltstack", "sequences: 7 rows, 0 differ", id="stacks too small for a permission"),
        pytest.param("", "sequences: 92 rows, 0 differ", id="everything here"),
    ],
)
def test_sequences(prefix: str, figure: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Return codes, containers, permissions, XFD and the order of operations are the kernel's, step by step."""
    assert main(["sequences", str(SEQUENCES), "--name", prefix]) == 0
    assert _last_line(capsys) == figure


def test_random_legal_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    """What a KVM and a host could do, at random: the same, step by step, bug B46 aside."""
    assert main(["sequences", str(LEGAL_SEQUENCES)]) == 0
    assert _last_line(capsys) == "sequences: 60 rows, 0 differ"


def test_as_a_command() -> None:
    """``python -m tests.differential`` from the clone's root prints the same line."""
    command = [sys.executable, "-m", "tests.differential", "layouts", str(LAYOUTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "layouts: 29 rows (12 truncated), 0 differ\n"), done.stderr


# -- one altered value is found and named ------------------------------------------------------------------------------


def _whole_row(data: dict[str, Any]) -> dict[str, Any]:
    found = next(row for row in data["rows"] if not row["dump_missing_subleaves"])
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("key", "alter"),
    [
        pytest.param(
            "kernel_default_size", lambda row: row["result"].update(kernel_default_size=1), id="a size of the result"
        ),
        pytest.param("task_fpstate", lambda row: row["task_fpstate"].update(xfd="0x1"), id="a field of the container"),
        pytest.param("compacted size of", lambda row: row["sizes"][-1].update(compacted=1), id="the size of a mask"),
        pytest.param(
            "components", lambda row: row["result"]["components"]["2"].update(kernel_offset=1), id="an offset"
        ),
    ],
)
def test_altered_layout(
    key: str, alter: Callable[[dict[str, Any]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, the processor and the key in the first lines, and a figure that counts it."""
    path = _altered(LAYOUTS, tmp_path, lambda data: alter(_whole_row(data)))
    assert main(["layouts", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{_whole_row(_data(LAYOUTS))['cpu']}: {key}")
    assert lines[-1] == "layouts: 29 rows (12 truncated), 1 differ"


def test_truncated_dump_that_says_it_is_whole(tmp_path: Path) -> None:
    """A dump without a sub-leaf is refused by the loader, whatever the row says: that is no clean result."""

    def pretend(data: dict[str, Any]) -> None:
        next(row for row in data["rows"] if row["dump_missing_subleaves"])["dump_missing_subleaves"] = []

    assert main(["layouts", str(_altered(LAYOUTS, tmp_path, pretend))]) != 0


def test_whole_dump_that_says_it_is_truncated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dump that is accepted although the row says a sub-leaf is missing is a difference."""

    def pretend(data: dict[str, Any]) -> None:
        _whole_row(data)["dump_missing_subleaves"] = [2]

    assert main(["layouts", str(_altered(LAYOUTS, tmp_path, pretend))]) == 1
    assert _last_line(capsys) == "layouts: 29 rows (13 truncated), 1 differ"


@pytest.mark.parametrize(
    ("key", "alter"),
    [
        pytest.param("ret", lambda step: step.update(ret=step["ret"] - 1), id="a return code"),
        pytest.param("trace", lambda step: step["trace"].append("VFREE buf9"), id="one operation too many"),
        pytest.param("hw_xfd", lambda step: step.update(hw_xfd="0x20000"), id="the XFD register"),
        pytest.param("guest_perm", lambda step: step["guest_perm"].__setitem__(1, 0), id="a permission's size"),
        pytest.param("unheard_of", lambda step: step.update(unheard_of=1), id="a key the model does not have"),
    ],
)
def test_altered_sequence(
    key: str, alter: Callable[[dict[str, Any]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, with processor, row, step and key in the first line."""
    path = _altered(SEQUENCES, tmp_path, lambda data: alter(data["rows"][0]["steps"][0]))
    assert main(["sequences", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    row = _data(SEQUENCES)["rows"][0]
    assert lines[0].startswith(f"{row['cpu']}, {row['name']!r}, step 0 ({row['ops'][0]}): {key}")
    assert lines[-1] == "sequences: 92 rows, 1 differ"


@pytest.mark.parametrize(("op", "key"), [("toui", "out"), ("fromui", "ret"), ("fromui", "out")])
def test_altered_copy(op: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a copy out or in said is compared too."""

    def alter(data: dict[str, Any]) -> None:
        step = next(step for row in data["rows"] for step in row["steps"] if step["op"] == op)
        step[key] = "0x12345" if key == "out" else 5

    assert main(["sequences", str(_altered(SEQUENCES, tmp_path, alter))]) == 1
    assert f": {key}\n" in capsys.readouterr().out


def test_only_the_first_difference_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two differences: one is shown, both are counted; ``--all`` shows both."""

    def twice(data: dict[str, Any]) -> None:
        for step in data["rows"][0]["steps"][:2]:
            step["ret"] = 77

    path = str(_altered(SEQUENCES, tmp_path, twice))
    for argv, shown in (([], 1), (["--all"], 2)):
        assert main(["sequences", path, *argv]) == 1
        out = capsys.readouterr().out
        assert out.count("data:  77") == shown
        assert out.endswith("2 differ\n")


# -- nothing to judge is an error --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["layouts", "sequences"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param('{"rows": []}', "no row to judge", id="no rows"),
        pytest.param('{"rows": 3}', "expected an object with a list 'rows'", id="rows that are no list"),
        pytest.param("[]", "expected an object with a list 'rows'", id="not even an object"),
        pytest.param('{"rows": [{}]}', "KeyError", id="a row of another form"),
        pytest.param("rows", "JSONDecodeError", id="no JSON"),
    ],
)
def test_nothing_to_judge(
    kind: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, and a line on stderr that names the file: a clean figure would prove nothing."""
    path = tmp_path / "data.json"
    path.write_text(content, encoding="utf-8")
    assert main([kind, str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(path) in captured.err
    assert message in captured.err


def test_prefix_that_matches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt prefix is an error too."""
    assert main(["sequences", str(SEQUENCES), "--name", "foundling:"]) == 2
    assert "no row to judge" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(b'{"rows": []}')[:-9]], ids=["not gzip", "cut off"])
def test_broken_file(content: bytes, tmp_path: Path) -> None:
    """A file that is not there, or not what its name says, is status 2."""
    path = tmp_path / "data.json.gz"
    assert main(["layouts", str(path)]) == 2
    path.write_bytes(content)
    assert main(["layouts", str(path)]) == 2


# -- the data in the tree ----------------------------------------------------------------------------------------------


def test_every_file_of_the_tree_is_judged() -> None:
    """`everything` reads each file under tests/data once."""
    assert sorted(name for _kind, name in FILES) == sorted(path.name for path in DATA.iterdir())


def test_the_docs_say_what_everything_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/agreement.md shows the figures of today, those of the live kinds aside: they have tests of their own."""
    assert [main(command) for command in arguments()] == [0] * len(FILES)
    shown = (ROOT / "docs" / "agreement.md").read_text(encoding="utf-8").split("```")[1].strip().splitlines()
    assert [line for line in shown if not line.startswith("live-")] == capsys.readouterr().out.splitlines()
