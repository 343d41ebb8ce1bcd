"""XSAVE, XSAVEC, XSAVES, XRSTOR and XRSTORS, with XFD and every fault.

Reference: Intel SDM vol. 1, 13.7 to 13.14.
"""

from __future__ import annotations

import pytest

from fpu_core.cpu import Cpu, Vector
from fpu_core.fpstate import MXCSR_INIT, Fpstate
from fpu_core.layout import MXCSR_OFFSET, XSTATE_BV_OFFSET
from fpu_core.xfeature import (
    XCOMP_BV_COMPACTED_FORMAT,
    XFEATURE_MASK_AVX512,
    XFEATURE_MASK_FP,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_SSE,
    XFEATURE_MASK_XTILE_DATA,
    XFEATURE_MASK_YMM,
)
from fpu_core.xsave import fxrstor, fxsave, xrstor, xsave_compacted, xsave_standard
from tests.core.rig import Rig, without_compaction

_ALL = 0x602E7
_GARBAGE = 0xEE


def _cpu(*, xfd: int = 0) -> Cpu:
    """A processor whose registers all hold something, each component its own number."""
    cpu = Rig.create().cpus[1]
    cpu.xfd = cpu.xfd_cache = 0
    for nr in (0, 1, 2, 5, 6, 7, 17, 18):
        cpu.write_register(nr, 0, bytes([nr + 1] * 16))
    cpu.xfd = cpu.xfd_cache = xfd
    return cpu


def _image(cpu: Cpu, mask: int = _ALL) -> Fpstate:
    """An image that holds garbage wherever an instruction could write, but for the header."""
    regs = bytearray([_GARBAGE] * cpu.config.kernel_size(cpu.config.kernel.max_features))
    regs[MXCSR_OFFSET : MXCSR_OFFSET + 4] = MXCSR_INIT.to_bytes(4, "little")
    regs[XSTATE_BV_OFFSET : XSTATE_BV_OFFSET + 64] = bytes(64)
    return Fpstate(regs=regs, size=len(regs), user_size=0, xfeatures=mask, user_xfeatures=mask, xfd=0)


def _seen(cpu: Cpu) -> tuple[object, ...]:
    """All there is to see of the registers."""
    return cpu.xinuse, cpu.mxcsr, cpu.observable(), {nr: bytes(raw) for nr, raw in cpu.regs.items()}


# -- saves -------------------------------------------------------------------------------------------------------------


def test_xsaves_writes_what_is_in_use_and_skips_the_rest() -> None:
    """Init optimisation: a component in its init state has no bit in XSTATE_BV and not a byte is written for it."""
    cpu = _cpu()
    cpu.init_components(XFEATURE_MASK_YMM)
    image = _image(cpu)
    xsave_compacted(cpu, image, _ALL & ~(1 << 5))
    assert image.xstate_bv == cpu.xinuse & _ALL & ~(1 << 5)
    assert not image.xstate_bv & XFEATURE_MASK_YMM
    assert image.xcomp_bv == _ALL & ~(1 << 5) | XCOMP_BV_COMPACTED_FORMAT
    offsets = cpu.config.table.offsets(_ALL & ~(1 << 5), compacted=True)
    assert set(image.regs[offsets[2] : offsets[2] + 256]) == {_GARBAGE}
    assert image.regs[offsets[6] : offsets[6] + 16] == bytes([7] * 16)


def test_xsaves_leaves_the_registers_alone() -> None:
    """A save preserves what it saves."""
    cpu = _cpu()
    before = _seen(cpu)
    xsave_compacted(cpu, _image(cpu), _ALL)
    assert _seen(cpu) == before


def test_xsave_under_xfd_sees_init_state() -> None:
    """With XFD[18] set every save behaves as if tile data were in its init state: nothing is written for it."""
    cpu = _cpu(xfd=XFEATURE_MASK_XTILE_DATA)
    image = _image(cpu)
    xsave_compacted(cpu, image, _ALL)
    assert not image.xstate_bv & XFEATURE_MASK_XTILE_DATA
    assert cpu.xinuse & XFEATURE_MASK_XTILE_DATA, "the register itself is not destroyed"
    offset = cpu.config.table.offset(_ALL, 18, compacted=True)
    assert set(image.regs[offset : offset + 8192]) == {_GARBAGE}


@pytest.mark.parametrize("optimized", [pytest.param(False, id="XSAVE"), pytest.param(True, id="XSAVEOPT")])
def test_standard_save_of_init_state(optimized: bool) -> None:
    """XSAVE writes init values for a component not in use; XSAVEOPT leaves memory as it is."""
    cpu = _cpu()
    cpu.init_components(XFEATURE_MASK_YMM | XFEATURE_MASK_FP)
    image = _image(cpu)
    xsave_standard(cpu, image, 0x7, optimized=optimized)
    assert image.xstate_bv == XFEATURE_MASK_SSE
    assert set(image.regs[576:832]) == ({_GARBAGE} if optimized else {0})
    assert image.regs[0:2] == (bytes([_GARBAGE] * 2) if optimized else (0x37F).to_bytes(2, "little"))


def test_standard_save_keeps_bits_outside_its_mask() -> None:
    """XSTATE_BV[i] for i outside RFBM stays what it was in memory."""
    cpu = _cpu()
    image = _image(cpu)
    image.xstate_bv = 1 << 7
    xsave_standard(cpu, image, XFEATURE_MASK_FP, optimized=False)
    assert image.xstate_bv == 1 << 7 | XFEATURE_MASK_FP


def test_mxcsr_alone_counts_as_sse_for_xsavec_and_not_for_xsave() -> None:
    """XINUSE[1] with XMM all zero and MXCSR changed: XSAVEC writes XSTATE_BV[1] = 1, XSAVE 0, and both store MXCSR.

    Reference: a bare Zen 4 at ring 3 answers so.
    """
    cpu = Rig.create().cpus[1]
    cpu.set_mxcsr(0x1FA0)
    compacted, standard = _image(cpu), _image(cpu)
    xsave_compacted(cpu, compacted, 0x7)
    xsave_standard(cpu, standard, 0x7, optimized=False)
    assert compacted.xstate_bv == XFEATURE_MASK_SSE
    assert standard.xstate_bv == 0
    for image in (compacted, standard):
        assert image.regs[MXCSR_OFFSET : MXCSR_OFFSET + 8] == (0xFFFF_0000_1FA0).to_bytes(8, "little")


def test_plain_xsave_under_xfd_writes_the_init_image() -> None:
    """Where the instruction has no init optimisation, 8 KiB of zeros are written over the tiles."""
    cpu = _cpu(xfd=XFEATURE_MASK_XTILE_DATA)
    image = _image(cpu)
    image.regs.extend(bytes([_GARBAGE]) * (11008 - len(image.regs)))
    xsave_standard(cpu, image, _ALL, optimized=False)
    assert not image.xstate_bv & XFEATURE_MASK_XTILE_DATA
    assert set(image.regs[2816:11008]) == {0}


# -- restores ----------------------------------------------------------------------------------------------------------


def test_xrstors_loads_what_xstate_bv_has_and_initialises_the_rest() -> None:
    """XSTATE_BV[i] = 1 loads component i, 0 puts it into its init state; outside RFBM nothing happens."""
    cpu = _cpu()
    image = _image(cpu)
    xsave_compacted(cpu, image, _ALL)
    image.xstate_bv = XFEATURE_MASK_YMM
    for nr in (2, 6, 7):
        cpu.write_register(nr, 0, b"changed")
    assert xrstor(cpu, image, _ALL & ~(1 << 7), supervisor=True) is None
    assert cpu.read_register(2)[:16] == bytes([3] * 16)
    assert not any(cpu.read_register(6))
    assert cpu.read_register(7).startswith(b"changed")


def test_round_trip() -> None:
    """What was saved is what is loaded, byte for byte, in either format."""
    for supervisor in (True, False):
        cpu = _cpu()
        cpu.set_mxcsr(0x1FA0)
        image = _image(cpu)
        image.regs.extend(bytes(11008 - len(image.regs)))
        before = cpu.observable()
        if supervisor:
            xsave_compacted(cpu, image, _ALL)
        else:
            xsave_standard(cpu, image, _ALL, optimized=False)
        cpu.init_components(_ALL)
        assert xrstor(cpu, image, _ALL, supervisor=supervisor) is None
        assert cpu.observable() == before
        assert cpu.mxcsr == 0x1FA0


def test_standard_xrstor_loads_mxcsr_from_an_image_in_init_state() -> None:
    """In the standard format MXCSR comes from memory whatever XSTATE_BV says; in the compacted one it does not."""
    cpu = _cpu()
    cpu.set_mxcsr(0x1F00)
    image = _image(cpu)
    image.regs[MXCSR_OFFSET : MXCSR_OFFSET + 2] = (0x1FA0).to_bytes(2, "little")
    assert xrstor(cpu, image, _ALL, supervisor=False) is None
    assert cpu.mxcsr == 0x1FA0
    image.xcomp_bv = _ALL | XCOMP_BV_COMPACTED_FORMAT
    assert xrstor(cpu, image, _ALL, supervisor=True) is None
    assert cpu.mxcsr == MXCSR_INIT


@pytest.mark.parametrize(
    ("change", "supervisor", "vector"),
    [
        pytest.param({"xcomp_bv": 0x7}, True, Vector.GP, id="XRSTORS wants the compacted format: #GP"),
        pytest.param({"xcomp_bv": 0x7, "xstate_bv": 0}, False, Vector.GP, id="XCOMP_BV without bit 63 is not 0: #GP"),
        pytest.param(
            {"xcomp_bv": 1 << 63 | 1 << 40 | 0x7}, True, Vector.GP, id="XCOMP_BV names what there is not: #GP"
        ),
        pytest.param({"xcomp_bv": 1 << 63 | 0x3}, True, Vector.GP, id="XSTATE_BV has what XCOMP_BV has not: #GP"),
        pytest.param(
            {"xcomp_bv": 0, "xstate_bv": 1 << 40}, False, Vector.GP, id="XSTATE_BV names what there is not: #GP"
        ),
        pytest.param({"byte": (528, 1)}, True, Vector.GP, id="the first reserved byte of the header: #GP"),
        pytest.param({"byte": (575, 1)}, True, Vector.GP, id="the last reserved byte of the header: #GP"),
        pytest.param({"byte": (26, 1)}, True, Vector.GP, id="a reserved bit of MXCSR: #GP"),
        pytest.param({"xcomp_bv": 0, "byte": (27, 0x80)}, False, Vector.GP, id="the same in the standard format: #GP"),
        pytest.param({"xfd": XFEATURE_MASK_XTILE_DATA}, True, Vector.NM, id="tile data that XFD forbids to load: #NM"),
        pytest.param(
            {"xfd": XFEATURE_MASK_XTILE_DATA, "byte": (530, 1)}, True, Vector.GP, id="#GP is checked before #NM"
        ),
    ],
)
def test_fault_changes_nothing(change: dict[str, object], supervisor: bool, vector: Vector) -> None:
    """Every fault of a restore leaves the registers as they were."""
    cpu = _cpu()
    image = _image(cpu)
    xsave_compacted(cpu, image, _ALL)
    for name, value in change.items():
        if name == "byte":
            assert isinstance(value, tuple)
            image.regs[value[0]] = value[1]
        elif name == "xfd":
            cpu.xfd = XFEATURE_MASK_XTILE_DATA
        else:
            setattr(image, name, value)
    before = _seen(cpu)
    assert xrstor(cpu, image, _ALL, supervisor=supervisor) is vector
    assert _seen(cpu) == before
    assert cpu.xfd_err == (XFEATURE_MASK_XTILE_DATA if vector is Vector.NM else 0)


def test_reserved_mxcsr_does_not_matter_where_it_is_not_loaded() -> None:
    """A compacted image whose XSTATE_BV lacks SSE loads no MXCSR, so its bytes may be anything."""
    cpu = _cpu()
    image = _image(cpu)
    xsave_compacted(cpu, image, _ALL)
    image.xstate_bv &= ~XFEATURE_MASK_SSE
    image.regs[26] = 1
    assert xrstor(cpu, image, _ALL, supervisor=True) is None
    assert cpu.mxcsr == MXCSR_INIT


def test_xrstor_with_the_bit_clear_initialises_under_xfd() -> None:
    """XFD[18] = 1 and XSTATE_BV[18] = 0: no #NM, and the tiles are in their init state afterwards."""
    cpu = _cpu(xfd=XFEATURE_MASK_XTILE_DATA)
    image = _image(cpu)
    xsave_compacted(cpu, image, _ALL)
    assert xrstor(cpu, image, _ALL, supervisor=True) is None
    assert not cpu.xinuse & XFEATURE_MASK_XTILE_DATA


def test_bytes_are_counted() -> None:
    """The counters say how many register bytes moved, component sizes and nothing else."""
    cpu = Rig.create().cpus[1]
    cpu.write_register(2, 0, b"x")
    cpu.write_register(5, 0, b"x")
    image = _image(cpu)
    xsave_compacted(cpu, image, XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM | XFEATURE_MASK_AVX512)
    xrstor(cpu, image, _ALL, supervisor=True)
    assert cpu.counters.bytes_saved == cpu.counters.bytes_restored == 256 + 64


# -- without XSAVE -----------------------------------------------------------------------------------------------------


def test_fxsave_round_trip_and_fault() -> None:
    """FXSAVE holds x87, SSE and MXCSR; FXRSTOR of reserved MXCSR bits is #GP and changes nothing."""
    rig = Rig.create(without_compaction(xsave=False))
    cpu, image = rig.cpu, rig.fpu.fpstate
    cpu.write_register(0, 32, b"st0")
    cpu.write_register(1, 0, b"xmm0")
    cpu.set_mxcsr(0x1FA0)
    before = cpu.observable()
    fxsave(cpu, image)
    cpu.init_components(XFEATURE_MASK_FPSSE)
    assert fxrstor(cpu, image) is None
    assert (cpu.observable(), cpu.mxcsr) == (before, 0x1FA0)
    image.regs[26] = 1
    assert fxrstor(cpu, image) is Vector.GP
    assert (cpu.observable(), cpu.mxcsr) == (before, 0x1FA0)
