"""XSAVE, XSAVEOPT, XSAVEC and XRSTOR as a program executes them, on memory at an address.

Reference: Intel SDM vol. 1, 13.7 to 13.10 and vol. 2, the exceptions of each; a bare Zen 4 at ring 3.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from fpu_core.cpu import Cpu, Vector
from fpu_core.cpuid import builtin_profile
from fpu_core.errors import FieldError
from fpu_core.layout import XCOMP_BV_OFFSET, XSTATE_BV_OFFSET
from fpu_core.xfeature import XCOMP_BV_COMPACTED_FORMAT, XFEATURE_MASK_XTILE, XFEATURE_MASK_XTILE_DATA
from fpu_core.xsave_insn import (
    MemoryImage,
    XsaveInsn,
    fxrstor_from_memory,
    fxsave_to_memory,
    xrstor_from_memory,
    xsave_to_memory,
)
from tests.core.rig import Rig, without_compaction

_ALL = (1 << 64) - 1
_SIZE = 11008


def _cpu() -> Cpu:
    """A processor whose registers all hold something."""
    cpu = Rig.create().cpus[1]
    cpu.xfd = cpu.xfd_cache = 0
    for nr in (1, 2, 5, 6, 7, 9, 17, 18):
        cpu.write_register(nr, 0, bytes([nr + 1] * 4))
    return cpu


def _memory(*, xstate_bv: int = 0, xcomp_bv: int = 0, fill: int = 0) -> bytearray:
    memory = bytearray([fill] * _SIZE)
    memory[XSTATE_BV_OFFSET : XSTATE_BV_OFFSET + 64] = bytes(64)
    memory[24:28] = (0x1F80).to_bytes(4, "little")
    image = MemoryImage(memory)
    image.xstate_bv, image.xcomp_bv = xstate_bv, xcomp_bv
    return memory


@pytest.mark.parametrize("insn", [each for each in XsaveInsn if each.stores])
def test_round_trip_through_memory(insn: XsaveInsn) -> None:
    """What one program stores is what XRSTOR loads, in either format."""
    cpu, memory = _cpu(), _memory()
    before = cpu.observable()
    assert xsave_to_memory(cpu, insn, memory, _ALL) is None
    cpu.init_components(_ALL)
    assert xrstor_from_memory(cpu, memory, _ALL) is None
    assert cpu.observable() == before


@pytest.mark.parametrize("insn", [XsaveInsn.XSAVE, XsaveInsn.XSAVEOPT])
def test_the_standard_form_leaves_the_header_but_for_its_bits(insn: XsaveInsn) -> None:
    """XSTATE_BV outside RFBM, XCOMP_BV and the reserved bytes stay what they were in memory."""
    cpu, memory = _cpu(), _memory(xstate_bv=1 << 40 | 1 << 7, xcomp_bv=0x1234)
    memory[540] = 9
    assert xsave_to_memory(cpu, insn, memory, 1 << 2) is None
    assert MemoryImage(memory).xstate_bv == 1 << 40 | 1 << 7 | 1 << 2
    assert (MemoryImage(memory).xcomp_bv, memory[540]) == (0x1234, 9)


@pytest.mark.parametrize("xfd", [0, XFEATURE_MASK_XTILE_DATA])
def test_xsavec_of_tiles_in_their_init_state(xfd: int) -> None:
    """After TILERELEASE a preset XSTATE_BV[18] is cleared and XCOMP_BV[18] is set, under XFD too, without an #NM.

    Source: tools/testing/selftests/kvm/x86/amx_test.c.
    """
    cpu, memory = _cpu(), _memory(xstate_bv=XFEATURE_MASK_XTILE_DATA)
    cpu.init_components(XFEATURE_MASK_XTILE)
    cpu.xfd = xfd
    assert xsave_to_memory(cpu, XsaveInsn.XSAVEC, memory, XFEATURE_MASK_XTILE_DATA) is None
    image = MemoryImage(memory)
    assert (image.xstate_bv, image.xcomp_bv) == (0, XFEATURE_MASK_XTILE_DATA | XCOMP_BV_COMPACTED_FORMAT)


def test_xrstor_of_tiles_under_xfd_is_nm() -> None:
    """XSTATE_BV[18] = 1 under XFD: #NM, XFD_ERR says which, and nothing is loaded."""
    cpu = _cpu()
    before = cpu.observable()
    cpu.xfd = XFEATURE_MASK_XTILE_DATA
    assert xrstor_from_memory(cpu, _memory(xstate_bv=XFEATURE_MASK_XTILE), _ALL) is Vector.NM
    assert cpu.xfd_err == XFEATURE_MASK_XTILE_DATA
    cpu.xfd = 0
    assert cpu.observable() == before


@pytest.mark.parametrize(
    ("header", "vector"),
    [
        pytest.param({24: 1}, None, id="the standard form looks at bytes 8..23 alone: OK"),
        pytest.param({63: 1}, None, id="the last byte in the standard form: OK"),
        pytest.param({16: 1}, Vector.GP, id="byte 16: #GP"),
        pytest.param({23: 1}, Vector.GP, id="byte 23: #GP"),
        pytest.param({8: 1}, Vector.GP, id="XCOMP_BV without bit 63: #GP"),
        pytest.param({8: 7, 15: 0x80}, None, id="the compacted form: OK"),
        pytest.param({8: 7, 15: 0x80, 24: 1}, Vector.GP, id="byte 24 in the compacted form: #GP"),
        pytest.param({8: 7, 15: 0x80, 63: 1}, Vector.GP, id="the last byte in the compacted form: #GP"),
        pytest.param({5: 1}, Vector.GP, id="XSTATE_BV outside XCR0, though RFBM has it not: #GP"),
        pytest.param({1: 8}, Vector.GP, id="XSTATE_BV with CET, which XSS has and XRSTOR does not load: #GP"),
        pytest.param({8: 7, 9: 8, 15: 0x80}, Vector.GP, id="XCOMP_BV with CET, likewise: #GP"),
        pytest.param({8: 7, 9: 1, 15: 0x80}, Vector.GP, id="XCOMP_BV with a supervisor component: #GP"),
    ],
)
def test_what_xrstor_wants_of_the_header(header: dict[int, int], vector: Vector | None) -> None:
    """The two forms check different bytes, and both check them whatever RFBM is."""
    memory = _memory()
    for at, value in header.items():
        memory[XSTATE_BV_OFFSET + at] = value
    assert xrstor_from_memory(_cpu(), memory, 0x7) is vector


@pytest.mark.parametrize("insn", list(XsaveInsn))
def test_address_and_cr0_ts(insn: XsaveInsn) -> None:
    """Not aligned to 64: #GP; CR0.TS: #NM before that, and XFD_ERR stays as it was; nothing is written."""
    cpu, memory = _cpu(), _memory(fill=0xAA)

    def execute(address: int) -> Vector | None:
        if insn.stores:
            return xsave_to_memory(cpu, insn, memory, _ALL, address=address)
        return xrstor_from_memory(cpu, memory, _ALL, address=address)

    assert execute(0x1010) is Vector.GP
    cpu.cr0_ts = True
    assert execute(0x1010) is Vector.NM
    assert cpu.xfd_err == 0
    assert memory == _memory(fill=0xAA)


@pytest.mark.parametrize("insn", list(XsaveInsn))
def test_a_processor_without_the_instruction_raises_ud(insn: XsaveInsn) -> None:
    """XSAVEC, XSAVEOPT and XSAVE each have a CPUID bit; XRSTOR goes with XSAVE."""
    profile = builtin_profile("skylake-sp")
    flag = {insn.name: False} if insn.stores else {"XSAVE": False}
    without = replace(profile, caps_override=profile.caps._replace(**flag))
    cpu, memory = Rig.create(without).cpus[1], _memory()
    found = xsave_to_memory(cpu, insn, memory, 3) if insn.stores else xrstor_from_memory(cpu, memory, 3)
    assert found is Vector.UD
    assert MemoryImage(memory).xcomp_bv == 0


def test_memory_that_is_too_short_is_the_callers_mistake() -> None:
    """The error names the bytes it takes, and nothing is written or loaded."""
    cpu = _cpu()
    memory = bytearray(832)
    assert xsave_to_memory(cpu, XsaveInsn.XSAVE, memory, 0x7) is None
    with pytest.raises(FieldError, match="at least 2688 bytes for an image of 0x"):
        xsave_to_memory(cpu, XsaveInsn.XSAVE, memory, 0xE7)
    before = cpu.observable()
    MemoryImage(memory).xstate_bv = 0xE7
    with pytest.raises(FieldError, match="at least 2688 bytes"):
        xrstor_from_memory(cpu, memory, _ALL)
    assert cpu.observable() == before


@pytest.mark.parametrize(
    ("insn", "rfbm", "bytes_needed"),
    [
        pytest.param(XsaveInsn.XSAVE, 0x3, 576, id="the legacy region and the header"),
        pytest.param(XsaveInsn.XSAVE, 0x83, 2688, id="XSAVE: where Hi16_ZMM ends"),
        pytest.param(XsaveInsn.XSAVEC, 0x83, 1600, id="XSAVEC: it lies behind the header"),
        pytest.param(XsaveInsn.XSAVEC, 0x87, 1856, id="or behind YMM"),
    ],
)
def test_how_much_memory_a_store_takes(insn: XsaveInsn, rfbm: int, bytes_needed: int) -> None:
    """To the byte, in either format; a byte less is refused, by name and with the size."""
    cpu = _cpu()
    assert xsave_to_memory(cpu, insn, _memory()[:bytes_needed], rfbm) is None
    with pytest.raises(FieldError, match=f"memory: expected at least {bytes_needed} bytes"):
        xsave_to_memory(cpu, insn, _memory()[: bytes_needed - 1], rfbm)


@pytest.mark.parametrize(
    ("xstate_bv", "xcomp_bv", "rfbm", "bytes_needed"),
    [
        pytest.param(0, 0, _ALL, 576, id="nothing in use"),
        pytest.param(0x87, 0, 0x3, 576, id="nothing asked for"),
        pytest.param(0x83, 0, _ALL, 2688, id="the standard format"),
        pytest.param(0x83, XCOMP_BV_COMPACTED_FORMAT | 0x83, _ALL, 1600, id="the compacted format"),
        pytest.param(0x83, XCOMP_BV_COMPACTED_FORMAT | 0x87, _ALL, 1856, id="with a gap for what is not in use"),
        pytest.param(0x3, XCOMP_BV_COMPACTED_FORMAT | 0x87, _ALL, 576, id="and without what is behind the last in use"),
    ],
)
def test_how_much_memory_a_load_takes(xstate_bv: int, xcomp_bv: int, rfbm: int, bytes_needed: int) -> None:
    """What XRSTOR reads: the components of RFBM that are in use, where the image's format has them."""
    cpu, memory = _cpu(), _memory(xstate_bv=xstate_bv, xcomp_bv=xcomp_bv)
    assert xrstor_from_memory(cpu, memory[:bytes_needed], rfbm) is None
    before = cpu.observable()
    with pytest.raises(FieldError, match=f"memory: expected at least {bytes_needed} bytes"):
        xrstor_from_memory(cpu, memory[: bytes_needed - 1], rfbm)
    assert cpu.observable() == before


@pytest.mark.parametrize("xcomp_bv", [XCOMP_BV_COMPACTED_FORMAT | 1 << 11, XCOMP_BV_COMPACTED_FORMAT | 0x3])
def test_a_layout_that_is_refused_takes_no_memory(xcomp_bv: int) -> None:
    """XCOMP_BV with a component that XCR0 has not, or without one that XSTATE_BV has: #GP, however short the image."""
    assert xrstor_from_memory(_cpu(), _memory(xstate_bv=0x87, xcomp_bv=xcomp_bv)[:576], _ALL) is Vector.GP


def test_fxsave_and_fxrstor_take_512_bytes() -> None:
    """At a multiple of 16; FXSAVE writes 416 of them, and a byte less than 512 is refused."""
    cpu, memory = _cpu(), bytearray(b"\xee" * 512)
    assert fxsave_to_memory(cpu, memory) is None
    assert (memory[160:164], memory[416:]) == (bytearray([2] * 4), bytearray(b"\xee" * 96))
    cpu.init_components(3)
    assert fxrstor_from_memory(cpu, memory) is None
    assert cpu.read_register(1)[:4] == bytes([2] * 4)
    for execute in (fxsave_to_memory, fxrstor_from_memory):
        assert execute(cpu, memory, address=0x1010) is None
        assert execute(cpu, memory, address=0x1008) is Vector.GP
        with pytest.raises(FieldError, match="at least 512 bytes"):
            execute(cpu, memory[:511])


def test_xsave_without_compaction_is_the_standard_form() -> None:
    """A processor without XSAVEC has XSAVE at the same offsets, and XRSTOR there knows the standard form alone: #GP."""
    cpu, memory = Rig.create(without_compaction()).cpus[1], _memory()
    cpu.write_register(2, 0, b"ymm")
    assert xsave_to_memory(cpu, XsaveInsn.XSAVE, memory, _ALL) is None
    assert memory[576:579] == b"ymm"
    assert int.from_bytes(memory[XCOMP_BV_OFFSET : XCOMP_BV_OFFSET + 8], "little") == 0
    assert xrstor_from_memory(cpu, memory, _ALL) is None
    MemoryImage(memory).xcomp_bv = XCOMP_BV_COMPACTED_FORMAT | 0xE7
    assert xrstor_from_memory(cpu, memory, _ALL) is Vector.GP
