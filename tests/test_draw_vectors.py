"""The draws are the same in every language: docs/vectors/draws.json, held in Python and in five more.

Each program of tests/vectors is the whole definition in its language, ready to be taken. Where a compiler is missing,
its test skips and names it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fault_lab.injection.draw import draw64, draw_ppm, fnv1a64, splitmix64

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests" / "vectors"
VECTORS = json.loads((ROOT / "docs" / "vectors" / "draws.json").read_text())


def test_the_parts() -> None:
    """SplitMix64 and FNV-1a, as their authors publish them: 0 gives e220a8397b1dcdaf, "foobar" 85944171f73967e8."""
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert fnv1a64(b"foobar") == 0x85944171F73967E8
    for row in VECTORS["splitmix64"]:
        assert splitmix64(int(row["of"], 16)) == int(row["is"], 16)
    for row in VECTORS["fnv1a64"]:
        assert fnv1a64(row["of"].encode()) == int(row["is"], 16)


@pytest.mark.parametrize("row", VECTORS["draws"], ids=lambda row: f"{row['seed']}-{row['point']}-{row['hit']}")
def test_python(row: dict[str, Any]) -> None:
    """Every draw of the file, and its parts per million."""
    key = int(row["seed"]), row["point"], row["entity"], int(row["hit"])
    assert f"{draw64(*key):016x}" == row["draw"]
    assert draw_ppm(*key) == row["ppm"]


def _cpp(folder: Path) -> list[str]:
    return _built(folder, _need("g++"), "-std=c++17", "-O1", "-o", f"{folder}/draws", f"{PROGRAMS}/draws.cc")


def _go(folder: Path) -> list[str]:
    return _built(folder, _need("go"), "build", "-o", f"{folder}/draws", f"{PROGRAMS}/draws.go")


def _java(folder: Path) -> list[str]:
    _run([_need("javac"), "-encoding", "UTF-8", "-d", str(folder), f"{PROGRAMS}/Draws.java"])
    return [_need("java"), "-Xshare:auto", "-Dfile.encoding=UTF-8", "-cp", str(folder), "Draws"]


def _javascript(_folder: Path) -> list[str]:
    return [_need("node"), f"{PROGRAMS}/draws.mjs"]


def _rust(folder: Path) -> list[str]:
    return _built(folder, _need("rustc"), "-o", f"{folder}/draws", f"{PROGRAMS}/draws.rs")


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "build", [_cpp, _go, _java, _javascript, _rust], ids=["C++", "Go", "Java", "JavaScript", "Rust"]
)
def test_another_language(build: Callable[[Path], list[str]], tmp_path: Path) -> None:
    """The program prints the draws of the file, line by line."""
    command = build(tmp_path)
    rows = VECTORS["draws"]
    asked = "".join(f"{row['seed']}\t{row['point']}\t{row['entity']}\t{row['hit']}\n" for row in rows)
    answered = _run(command, asked).splitlines()
    assert answered == [f"{row['draw']} {row['ppm']}" for row in rows]


def _built(folder: Path, *command: str) -> list[str]:
    _run(list(command))
    return [f"{folder}/draws"]


def _need(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"missing: {tool}")
    return found


def _run(command: list[str], text: str = "") -> str:
    """Run a tool; its own words are the failure."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout
