"""The generated code that is checked in is what the protos and the pinned compiler give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.gen_protos import generate, stale_files
from tools.protoc import GEN, REQUIREMENTS, ROOT, CompilerMissingError


@pytest.mark.timeout(400)
def test_the_generated_code_is_fresh(tmp_path: Path) -> None:
    """Generating anew changes nothing."""
    try:
        generate(tmp_path)
    except CompilerMissingError as missing:
        pytest.skip(f"no protobuf compiler: {missing}")
    assert stale_files(tmp_path, GEN) == []


def test_the_oldest_grpcio_that_installs_is_the_generators() -> None:
    """pyproject.toml admits no grpcio older than the compiler's, which the generated code would refuse."""
    pin = re.search(r"^grpcio-tools==(\S+)$", REQUIREMENTS.read_text(), re.MULTILINE)
    bound = re.search(r'"grpcio>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert pin
    assert bound
    assert bound[1] == pin[1]


def test_a_stale_tree_is_told_file_by_file(tmp_path: Path) -> None:
    """A file that is missing, differs, or is left over is named, and a byte code cache is not."""
    fresh, checked_in = tmp_path / "fresh", tmp_path / "checked_in"
    _write(fresh, {"v1/a_pb2.py": "new", "v1/b_pb2.py": "same", "v1/c_pb2.py": "new"})
    _write(checked_in, {"v1/a_pb2.py": "old", "v1/b_pb2.py": "same", "v1/d_pb2.py": "", "__pycache__/a.pyc": ""})
    assert stale_files(fresh, checked_in) == [
        "differs   v1/a_pb2.py",
        "missing   v1/c_pb2.py",
        "left over v1/d_pb2.py",
    ]


def _write(tree: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
