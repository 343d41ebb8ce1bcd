"""The modelled processor against real ones: recorded images and faults of a Zen 4, and the machine this runs on."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fpu_core.config import FpuConfig
from fpu_core.cpu import Vector
from fpu_core.silicon import AMD, Silicon
from fpu_core.xsave_insn import MemoryImage, XsaveInsn
from tests.differential import live_cpu
from tests.differential.__main__ import main
from tests.differential.native import parse_input
from tests.differential.report import Report, SkippedError

DATA = Path(__file__).parent / "data"
IMAGES = DATA / "native_xsave_images_sample.json.gz"
FAULTS = DATA / "native_xrstor_faults_sample.json.gz"


def _data(path: Path) -> dict[str, Any]:
    found = json.loads(gzip.decompress(path.read_bytes()))
    assert isinstance(found, dict)
    return found


def _altered(path: Path, tmp_path: Path, alter: Callable[[dict[str, Any]], None]) -> str:
    data = _data(path)
    alter(data)
    copy = tmp_path / "altered.json"
    copy.write_text(json.dumps(data), encoding="utf-8")
    return str(copy)


@pytest.mark.parametrize(
    ("kind", "path", "figure"),
    [
        pytest.param("native-images", IMAGES, "native-images: 20 rows, 0 differ", id="images, byte for byte"),
        pytest.param("native-faults", FAULTS, "native-faults: 87 rows, 0 differ", id="what XRSTOR refuses"),
    ],
)
def test_recorded(kind: str, path: Path, figure: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A bare Zen 4 at ring 3 did what the model of it does."""
    assert "Zen 4" in _data(path)["obtained"]
    assert main([kind, str(path)]) == 0
    assert capsys.readouterr().out == f"{figure}\n"


def _flip(row: dict[str, Any]) -> None:
    image = bytearray.fromhex(row["result_prefilled_aa_header_zero"])
    image[-1] ^= 1
    row["result_prefilled_aa_header_zero"] = image.hex()


@pytest.mark.parametrize(
    ("key", "alter"),
    [
        pytest.param("xinuse_after_load", lambda row: row.update(xinuse_after_load="0x0"), id="XINUSE"),
        pytest.param("result_xstate_bv", lambda row: row.update(result_xstate_bv="0x1"), id="XSTATE_BV"),
        pytest.param("result_xcomp_bv", lambda row: row.update(result_xcomp_bv="0x1"), id="XCOMP_BV"),
        pytest.param("extent_not_0xAA", lambda row: row.update(extent_not_0xAA=7), id="the extent"),
        pytest.param("image at 2439", _flip, id="one bit of the image"),
    ],
)
def test_altered_image(
    key: str, alter: Callable[[dict[str, Any]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, and the row and the key in the first line."""
    assert main(["native-images", _altered(IMAGES, tmp_path, lambda data: alter(data["images"][0]))]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"0 xsave rfbm=0x87 of xstate_bv=0x0: {key}"
    assert lines[-1] == "native-images: 20 rows, 1 differ"


def test_altered_row_without_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where only masks and the extent were recorded, an extent that no bytes could make is a difference."""

    def shorter(data: dict[str, Any]) -> None:
        row = next(row for row in data["images"] if "source" not in row and row["extent_not_0xAA"] == 832)
        row["extent_not_0xAA"] = 800

    assert main(["native-images", _altered(IMAGES, tmp_path, shorter)]) == 1
    assert capsys.readouterr().out.endswith("native-images: 20 rows, 1 differ\n")


def test_an_extent_that_random_bytes_made_shorter(tmp_path: Path) -> None:
    """A source that ends in 0xAA by chance: its extent is a byte short, and the bytes were not recorded."""

    def shorter(data: dict[str, Any]) -> None:
        next(row for row in data["images"] if "source" not in row and row["result_xstate_bv"] == "0x7").update(
            extent_not_0xAA=831
        )

    assert main(["native-images", _altered(IMAGES, tmp_path, shorter)]) == 0


def test_altered_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A verdict that the model does not share."""

    def alter(data: dict[str, Any]) -> None:
        data["rows"][0]["verdict"] = "SIGSEGV trap 13"

    assert main(["native-faults", _altered(FAULTS, tmp_path, alter)]) == 1
    assert capsys.readouterr().out.startswith("xrstor of 'standard xstate_bv=0x0': verdict")


@pytest.mark.parametrize("text", ["standard sideways=1", "header", "standard xstate_bv=0 and more"])
def test_unknown_input(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An input that cannot be read is an error that quotes it, not a row that passes."""

    def alter(data: dict[str, Any]) -> None:
        data["rows"][0]["input"] = text

    assert main(["native-faults", _altered(FAULTS, tmp_path, alter)]) == 2
    assert f"of the input {text!r}" in capsys.readouterr().err


def test_inputs_are_read_whole() -> None:
    """Every form of the data: forms and masks joined by ``|``, header bytes, MXCSR, alignment."""
    made = parse_input("xrstor", "compacted xcomp_bv=bit63|0xe7|bit38 xstate_bv=0x5 rfbm=all mxcsr=0x1f80|bit2")
    image = MemoryImage(made.memory)
    assert (image.xcomp_bv, image.xstate_bv, made.rfbm) == (1 << 63 | 1 << 38 | 0xE7, 5, (1 << 64) - 1)
    assert made.memory[24:28] == (0x1F84).to_bytes(4, "little")
    assert MemoryImage(parse_input("xrstor", "compacted xcomp=0x7 xstate_bv=2").memory).xcomp_bv == 1 << 63 | 7
    made = parse_input("xrstor", "standard header byte 59=1")
    assert made.memory[512 + 59] == 1
    made = parse_input("xrstor", "xsave misaligned by 16")
    assert (made.insn, made.address % 64) == (XsaveInsn.XSAVE, 16)


# -- the machine this runs on ------------------------------------------------------------------------------------------


#: The family that was compared here, Zen 5. On another the command may find something new, which is no failed test.
_MEASURED_FAMILY = 0x1A


@pytest.fixture(name="config")
def _config() -> FpuConfig:
    """The running processor, where the helper can be built and the model of it was compared before."""
    try:
        live_cpu.build_helper()
        config = live_cpu.running_processor()
    except SkippedError as skipped:
        pytest.skip(str(skipped))
    eax = config.profile.regs(0x1).eax
    family = (eax >> 8 & 0xF) + (eax >> 20 & 0xFF)
    if config.silicon is not AMD or family != _MEASURED_FAMILY:
        pytest.skip(f"a processor of family {family:#x}, which nobody has measured")
    return config


@pytest.mark.usefixtures("config")
def test_live_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Five hundred random rounds on the running processor and on the model agree; the command is printed."""
    assert main(["live-cpu", "--rounds", "500", "--seed", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "live-cpu: seed 7; python -m tests.differential live-cpu --rounds 500 --seed 7"
    assert lines[-1] == "live-cpu: 500 rounds, 0 differ"


def test_live_rounds_are_not_all_the_same(config: FpuConfig) -> None:
    """The rounds drawn reach what they are for: loads and saves that fault and that do not, in both formats."""
    helper = live_cpu.build_helper()
    images = live_cpu.RoundMaker(config, live_cpu.enabled(config, helper), random.Random(7))
    rounds = [images.round() for _ in range(500)]
    answers = live_cpu.on_processor(helper, rounds)
    assert {answer.load_trap for answer in answers} == {0, Vector.GP}
    assert {answer.save_trap for answer in answers} == {0, Vector.GP}
    assert len({answer.xinuse for answer in answers}) > 8
    compacted = [MemoryImage(bytearray(each.source)).xcomp_bv >> 63 for each in rounds]
    loaded = {form for form, answer in zip(compacted, answers, strict=True) if not answer.load_trap}
    assert loaded == ({0, 1} if config.caps.XSAVEC else {0})


@pytest.mark.parametrize(
    "silicon",
    [
        pytest.param(replace(AMD, xinuse_by_content=False), id="XINUSE by what was loaded"),
        pytest.param(replace(AMD, x87_pointers_need_exception=False), id="x87 pointers without an exception"),
        pytest.param(replace(AMD, x87_pointer_bits=48), id="x87 pointers of 48 bits"),
    ],
)
def test_live_cpu_finds_a_wrong_model(config: FpuConfig, silicon: Silicon) -> None:
    """One property the other way round, and rounds differ."""
    wrong = replace(config, silicon=silicon)
    helper = live_cpu.build_helper()
    xcr0 = live_cpu.enabled(config, helper)
    images = live_cpu.RoundMaker(config, xcr0, random.Random(7))
    rounds = [images.round() for _ in range(500)]
    report = Report("live-cpu")
    for each, theirs in zip(rounds, live_cpu.on_processor(helper, rounds), strict=True):
        live_cpu.compare(report, str(each), live_cpu.on_model(wrong, xcr0, each), theirs)
    assert report.differences


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize(("times", "status"), [(1, 0), (2, 1)], ids=["once: an interrupt", "twice: a difference"])
def test_a_round_that_differs_is_executed_once_more(
    times: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What does not repeat was an interrupt in the middle and is said to be one; what does is a difference."""
    execute, wrong = live_cpu.on_processor, iter([True] * times)

    def sometimes(helper: Path, rounds: list[live_cpu.Round]) -> list[live_cpu.Answer]:
        answers = execute(helper, rounds)
        if next(wrong, False):
            answers[0] = replace(answers[0], xinuse=answers[0].xinuse ^ 4)
        return answers

    monkeypatch.setattr(live_cpu, "on_processor", sometimes)
    assert main(["live-cpu", "--rounds", "50", "--seed", "7"]) == status
    out = capsys.readouterr().out
    assert ("agreed when they were executed again" in out) == (status == 0)
    assert out.endswith(f"50 rounds, {status} differ\n")


def test_no_compiler_is_a_printed_skip(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0 and the reason in place of a figure."""
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert main(["live-cpu", "--rounds", "1", "--seed", "1"]) == 0
    out = capsys.readouterr().out
    assert "live-cpu: skipped: " in out
    assert "rounds, " not in out


@pytest.mark.parametrize(
    "sent", [b"", b"\1" * 8, (576).to_bytes(8, "little") + b"x", (576).to_bytes(8, "little") + b"\xff" * 48]
)
@pytest.mark.usefixtures("config")
def test_the_helper_refuses_what_it_cannot_read(sent: bytes) -> None:
    """Status 2 and a sentence, whatever comes in."""
    done = live_cpu.feed(live_cpu.build_helper(), sent)
    assert done.returncode == 2
    assert done.stderr.startswith(b"live_cpu: ")
