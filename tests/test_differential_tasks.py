"""arch_prctl(2), sigaltstack(2) and ptrace(2) against a real kernel, through the command that prints the figures."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.differential.__main__ import main

DATA = Path(__file__).parent / "data"
PRCTL = DATA / "arch_prctl_6_18.json.gz"


def _altered(path: Path, tmp_path: Path, alter: Callable[[dict[str, Any]], None]) -> str:
    """A copy of the data, uncompressed, with one thing changed."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        data = json.load(file)
    alter(data)
    copy = tmp_path / "altered.json"
    copy.write_text(json.dumps(data), encoding="utf-8")
    return str(copy)


def test_prctl(capsys: pytest.CaptureFixture[str]) -> None:
    """Every arch_prctl call, every sigaltstack size and both reported sizes are as on Linux 6.18."""
    assert main(["prctl", str(PRCTL)]) == 0
    assert capsys.readouterr().out == "prctl: 155 rows, 0 differ\n"


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda data: data["rows"][0].update(out="0x2e7"), id="a mask"),
        pytest.param(lambda data: data["rows"][3].update(errno=22), id="an errno"),
        pytest.param(lambda data: data["rows"][30].update(ret=0), id="a result"),
        pytest.param(lambda data: data["rows"][-1].update(errno_name="OK"), id="the name of an errno"),
        pytest.param(lambda data: data["sigaltstack"][8].__setitem__(1, "ENOMEM"), id="a stack's verdict"),
        pytest.param(lambda data: data.update(AT_MINSIGSTKSZ=3392), id="the largest frame"),
    ],
)
def test_altered_prctl(
    alter: Callable[[dict[str, Any]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One altered value is one difference, and status 1."""
    assert main(["prctl", _altered(PRCTL, tmp_path, alter)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "prctl: 155 rows, 1 differ"


def test_prctl_needs_to_know_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file whose note names no XCR0 proves nothing."""
    path = _altered(PRCTL, tmp_path, lambda data: data.update(obtained="somewhere"))
    assert main(["prctl", path]) == 2
    assert "xcr0=0x" in capsys.readouterr().err


def test_arguments_the_kernel_does_not_see_whole(tmp_path: Path) -> None:
    """The option is 32 bits and the argument 64: what is above does not arrive."""

    def widen(data: dict[str, Any]) -> None:
        for row in data["rows"]:
            row["op_nr"] = hex(int(row["op_nr"], 0) | 1 << 32)
            if row["arg"] != "&u64":
                row["arg"] = hex(int(row["arg"], 0) | 1 << 64)

    assert main(["prctl", _altered(PRCTL, tmp_path, widen)]) == 0
