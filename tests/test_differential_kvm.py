"""The KVM layer against a real KVM, through the command that prints the figures; and one altered value a kind is found.

The files under tests/data are parts of larger sets of the same form; each says under ``obtained`` how it was made.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.differential.__main__ import main
from tests.differential.xsave_buffers import _fld

DATA = Path(__file__).parent / "data"
SET_XCRS = DATA / "kvm_set_xcrs.json.gz"
XSETBV = DATA / "kvm_guest_xsetbv_sample.json"
CPUID2 = DATA / "kvm_set_cpuid2_xcr0.json.gz"
KERNEL = DATA / "kernel612_kvm_set_xcr_sample.json"
VERDICTS = DATA / "kvm_set_xsave_verdicts_sample.json.gz"
BUFFERS = DATA / "kvm_xsave_buffers_sample.json.gz"
DUMPS = DATA / "cpuid_layouts.json.gz"

Alter = Callable[[dict[str, Any]], object]


def read(path: Path) -> dict[str, Any]:
    """A data file."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        found = json.load(file)
    assert isinstance(found, dict)
    return found


def altered(path: Path, tmp_path: Path, alter: Alter) -> Path:
    """A copy with one thing changed."""
    data = read(path)
    alter(data)
    copy = tmp_path / "altered.json"
    copy.write_text(json.dumps(data), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("kind", "path", "figure"),
    [
        pytest.param("xcr0", SET_XCRS, "2494 rows, 0 differ", id="KVM_SET_XCRS"),
        pytest.param("xcr0", XSETBV, "126 rows, 0 differ", id="XSETBV by a guest"),
        pytest.param("xcr0", CPUID2, "77 rows, 0 differ", id="KVM_SET_CPUID2"),
        pytest.param("xcr0", KERNEL, "65536 rows, 0 differ", id="every combination of 14 bits"),
        pytest.param("xsave-verdicts", VERDICTS, "84 rows, 0 differ", id="KVM_SET_XSAVE"),
        pytest.param("xsave-buffers", BUFFERS, "4 rows, 0 differ", id="KVM_GET_XSAVE2"),
        pytest.param("layouts", DUMPS, "33 rows (12 truncated), 0 differ", id="leaf 0xD of real processors"),
    ],
)
def test_figures(kind: str, path: Path, figure: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No row differs, and the last line says so."""
    assert "obtained" in read(path)
    assert main([kind, str(path)]) == 0
    assert capsys.readouterr().out == f"{kind}: {figure}\n"


def _flip(row: dict[str, Any], byte: int) -> None:
    raw = bytearray(bytes.fromhex(row["xsave2"]))
    raw[byte] ^= 0x10
    row["xsave2"] = raw.hex()


@pytest.mark.parametrize(
    ("kind", "path", "alter", "found"),
    [
        pytest.param("xcr0", SET_XCRS, lambda d: d["rows"][1].update(verdict="EINVAL"), "verdict", id="set: verdict"),
        pytest.param("xcr0", SET_XCRS, lambda d: d["rows"][1].update(xcr0_after="0x3"), "xcr0_after", id="set: after"),
        pytest.param("xcr0", SET_XCRS, lambda d: d["oddities"][1].update(verdict="OK"), "verdict", id="set: an oddity"),
        pytest.param(
            "xcr0",
            SET_XCRS,
            lambda d: d["effective_supported_xcr0"].update({"after KVM_SET_CPUID2": "0x7"}),
            "after KVM_SET_CPUID2",
            id="set: supported",
        ),
        pytest.param("xcr0", XSETBV, lambda d: d["rows"][9].update(verdict="OK"), "verdict", id="guest: verdict"),
        pytest.param("xcr0", XSETBV, lambda d: d["rows"][9].update(xcr0_after="0x0"), "xcr0_after", id="guest: after"),
        pytest.param("xcr0", XSETBV, lambda d: d.update(ecx_1_value_1="OK"), "ecx_1_value_1", id="guest: ECX = 1"),
        pytest.param(
            "xcr0", CPUID2, lambda d: d["rows"][24].update(set_cpuid2_errno=0), "set_cpuid2_errno", id="CPUID: errno"
        ),
        pytest.param("xcr0", CPUID2, lambda d: d["rows"][24].update(errno_name="OK"), "errno_name", id="CPUID: name"),
        pytest.param(
            "xcr0",
            CPUID2,
            lambda d: d["rows"][0]["get_cpuid2_leaf_d0"].update(ebx="0x340"),
            "get_cpuid2_leaf_d0",
            id="CPUID: the leaf",
        ),
        pytest.param("xcr0", KERNEL, lambda d: d["accepted"].pop(3), "accepted, CPUID", id="kernel: one accepted less"),
        pytest.param(
            "xcr0", KERNEL, lambda d: d["accepted"].append(["0x3", "0x7", 1]), "accepted, CPUID", id="kernel: one more"
        ),
        pytest.param(
            "xcr0", KERNEL, lambda d: d["accepted"][4].__setitem__(2, 0), "accepted, CPUID", id="kernel: the column"
        ),
        pytest.param(
            "xcr0",
            KERNEL,
            lambda d: d["accepted"].append(["0x3", "0x400", 0]),
            "a value among",
            id="kernel: never tried",
        ),
        pytest.param(
            "xsave-verdicts",
            VERDICTS,
            lambda d: d["rows_after_cpuid"][1].update(verdict="OK"),
            "verdict",
            id="XSAVE: verdict",
        ),
        pytest.param(
            "xsave-verdicts",
            VERDICTS,
            lambda d: d["rows_before_any_cpuid"][6].update(after_xstate_bv="0x7"),
            "after_xstate_bv",
            id="XSAVE: what is exported before CPUID",
        ),
        pytest.param(
            "xsave-verdicts",
            VERDICTS,
            lambda d: d["rows_after_cpuid"][-1].update(after_mxcsr="0x0"),
            "after_mxcsr",
            id="XSAVE: MXCSR",
        ),
        pytest.param(
            "xsave-verdicts",
            VERDICTS,
            lambda d: d.update(host_supported_xcr0="0x2e7"),
            "host_supported_xcr0",
            id="XSAVE: another host",
        ),
        *(
            pytest.param(
                "xsave-buffers",
                BUFFERS,
                lambda d, row=row, byte=byte: _flip(d["buffers"][row], byte),
                f"xsave2 from byte {byte}",
                id=f"buffer {row}, byte {byte}",
            )
            for row, byte in [(0, 24), (1, 2), (1, 48), (1, 512), (2, 175), (3, 464), (3, 832), (3, 2431), (3, 4095)]
        ),
        pytest.param(
            "xsave-buffers", BUFFERS, lambda d: d["buffers"][1]["kvm_fpu"].update(ftwx=0), "kvm_fpu", id="KVM_GET_FPU"
        ),
        pytest.param(
            "xsave-buffers", BUFFERS, lambda d: d["buffers"][0].update(get_xcrs="0x7"), "get_xcrs", id="KVM_GET_XCRS"
        ),
        pytest.param(
            "layouts", DUMPS, lambda d: _leaf(d, "0", "ecx", "0x00000340"), "0xD.0 ECX", id="dump: the whole size"
        ),
        pytest.param(
            "layouts", DUMPS, lambda d: _leaf(d, "2", "ebx", "0x00000250"), "components overlap", id="dump: an offset"
        ),
        pytest.param("layouts", DUMPS, lambda d: _leaf(d, "1", "ebx", "0x00001000"), "0xD.1 EBX", id="dump: compacted"),
        pytest.param(
            "layouts", DUMPS, lambda d: _leaf(d, "11", "ecx", "0x0"), "supervisor component", id="dump: supervisor"
        ),
    ],
)
def test_altered(
    kind: str, path: Path, alter: Alter, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, the difference named, and a figure that counts it."""
    assert main([kind, str(altered(path, tmp_path, alter)), "--all"]) == 1
    out = capsys.readouterr().out
    assert found in out
    assert not out.splitlines()[-1].endswith(" 0 differ")


def _leaf(data: dict[str, Any], subleaf: str, register: str, value: str) -> None:
    """Change a register of leaf 0xD of the Zen 4 that is among the dumps."""
    row = next(row for row in data["rows"] if "EPYC 9654" in row["cpu"])
    row["leaf_d"][subleaf][register] = value


def test_a_dump_that_lost_a_subleaf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused by the loader, counted, and no difference."""
    path = altered(DUMPS, tmp_path, lambda data: data["rows"][4]["leaf_d"].pop("2"))
    assert main(["layouts", str(path)]) == 0
    assert capsys.readouterr().out == "layouts: 33 rows (13 truncated), 0 differ\n"


@pytest.mark.parametrize(
    ("kind", "path", "alter", "named"),
    [
        pytest.param(
            "xsave-verdicts",
            VERDICTS,
            lambda d: d["rows_after_cpuid"][1].update(input="cwd=3"),
            "'cwd=3'",
            id="an edit of another field",
        ),
        pytest.param(
            "xsave-verdicts",
            VERDICTS,
            lambda d: d["rows_after_cpuid"][1].update(input="xstate_bv=most bits"),
            "'most bits'",
            id="another kind of value",
        ),
        pytest.param(
            "xsave-buffers", BUFFERS, lambda d: d["buffers"][1].update(case="amx"), "case 'amx'", id="other registers"
        ),
        pytest.param(
            "xcr0", SET_XCRS, lambda d: d["oddities"][0].update(input="pad_1"), "oddity 'pad_1'", id="another oddity"
        ),
        pytest.param("xcr0", SET_XCRS, lambda d: d.update(rows=[{"what": 1}]), "no known form", id="another form"),
    ],
)
def test_unknown_forms(
    kind: str, path: Path, alter: Alter, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, and what was not understood: a row that nobody judged must not look clean."""
    assert main([kind, str(altered(path, tmp_path, alter))]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("xcr0", '{"rows": []}'),
        ("xsave-verdicts", '{"rows_after_cpuid": []}'),
        ("xsave-verdicts", '{"rows": []}'),
        ("xsave-buffers", '{"buffers": []}'),
        ("xsave-buffers", '{"rows": []}'),
    ],
)
def test_nothing_to_judge(kind: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2: a clean figure would prove nothing."""
    path = tmp_path / "data.json"
    path.write_text(content, encoding="utf-8")
    assert main([kind, str(path)]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("double", "extended", "flags"),
    [
        pytest.param(0x3FF0_0000_0000_0000, (0x8000_0000_0000_0000, 0x3FFF), 0, id="one"),
        pytest.param(0x8000_0000_0000_0000, (0, 0x8000), 0, id="minus zero"),
        pytest.param(0x0000_0000_0000_0001, (0x8000_0000_0000_0000, 0x3BCD), 2, id="the smallest denormal: DE"),
        pytest.param(0xFFF0_0000_0000_0000, (0x8000_0000_0000_0000, 0xFFFF), 0, id="minus infinity"),
        pytest.param(0x7FF8_0000_0000_0001, (0xC000_0000_0000_0800, 0x7FFF), 0, id="a quiet NaN"),
        pytest.param(0x7FF0_0000_0000_0001, (0xC000_0000_0000_0800, 0x7FFF), 1, id="a signalling NaN: quiet, IE"),
    ],
)
def test_the_double_that_the_recorded_guest_pushes(double: int, extended: tuple[int, int], flags: int) -> None:
    """FLD of any 8 bytes as the processor does it: the file's registers are random, NaNs and denormals among them."""
    assert _fld(struct.pack("<Q", double)) == (struct.pack("<QH", *extended), flags)
