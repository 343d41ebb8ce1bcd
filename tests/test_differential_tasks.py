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
PTRACE = DATA / "ptrace_xstate_verdicts_sample.json.gz"


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


def test_ptrace(capsys: pytest.CaptureFixture[str]) -> None:
    """Every NT_X86_XSTATE write has the verdict Linux 6.18 gave it, and leaves what it left."""
    assert main(["ptrace", str(PTRACE)]) == 0
    assert capsys.readouterr().out == "ptrace: 48 rows, 0 differ\n"


def _row(data: dict[str, Any], text: str) -> dict[str, Any]:
    found = next(row for row in data["rows"] if row["input"] == text)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda data: _row(data, "GETREGSET").update(sw_xfeatures="0x2e7"), id="the software bytes"),
        pytest.param(lambda data: _row(data, "GETREGSET").update(len=2440), id="the length"),
        pytest.param(lambda data: _row(data, "len=8192").update(verdict="EFAULT"), id="a verdict"),
        pytest.param(lambda data: _row(data, "xstate_bv=0x6").update(after_xstate_bv="0x7"), id="XSTATE_BV afterwards"),
        pytest.param(lambda data: _row(data, "xstate_bv=0x15").update(after_mxcsr="0x1f81"), id="MXCSR afterwards"),
        pytest.param(lambda data: _row(data, "xstate_bv=bit14").update(input="xstate_bv=bit5"), id="what was written"),
        pytest.param(lambda data: _row(data, "header byte 21=1").update(input="header byte 21=0"), id="a header byte"),
    ],
)
def test_altered_ptrace(
    alter: Callable[[dict[str, Any]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One altered value is found."""
    assert main(["ptrace", _altered(PTRACE, tmp_path, alter)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] in ("ptrace: 48 rows, 1 differ", "ptrace: 48 rows, 2 differ")


def test_a_byte_of_the_image_that_reads_back_differently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes of a component that is in its init state are the kernel's to say: others there are a difference."""

    def scribble(data: dict[str, Any]) -> None:
        image = bytearray.fromhex(_row(data, "GETREGSET")["image"])
        image[700] = 1  # YMM, which XSTATE_BV says is in its init state
        _row(data, "GETREGSET")["image"] = image.hex()

    assert main(["ptrace", _altered(PTRACE, tmp_path, scribble)]) == 1
    assert "image" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        pytest.param(lambda data: data["rows"].pop(0), "GETREGSET", id="no first image"),
        pytest.param(lambda data: data["rows"][1].update(input="fcw=1"), "expected len=", id="an unknown field"),
        pytest.param(lambda data: data["rows"].clear(), "GETREGSET", id="no rows"),
    ],
)
def test_unreadable_ptrace(
    alter: Callable[[dict[str, Any]], None], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be judged is an error, not a pass."""
    assert main(["ptrace", _altered(PTRACE, tmp_path, alter)]) == 2
    assert says in capsys.readouterr().err
