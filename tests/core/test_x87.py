"""The x87 component: what is a register of it, bit by bit, and what each maker keeps.

Reference: Intel SDM vol. 1, 8.1.3, 8.1.5, 10.5.1; a Zen 5 at ring 3 for the AMD rows.
"""

from __future__ import annotations

import struct

import pytest

from fpu_core.config import boot
from fpu_core.cpu import Cpu
from fpu_core.cpuid import builtin_profile
from fpu_core.errors import FieldError
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.layout import MXCSR_OFFSET
from fpu_core.silicon import AMD, SDM, Silicon, silicon_of
from fpu_core.x87 import X87_INIT, x87_registers
from fpu_core.xfeature import XFEATURE_MASK_FP, XFEATURE_MASK_FPSSE, XFEATURE_MASK_SSE, XFEATURE_MASK_YMM
from fpu_core.xsave_insn import MemoryImage, XsaveInsn, xrstor_from_memory, xsave_to_memory

_ALL = (1 << 64) - 1


def _image(*, fcw: int = 0x37F, fsw: int = 0, fop: int = 0, fip: int = 0, fdp: int = 0) -> bytes:
    head = struct.pack("<HHBBHQQ", fcw, fsw, 0, 0, fop, fip, fdp)
    return head + bytes(160 - len(head))


def _head(raw: bytes) -> tuple[int, ...]:
    """FCW, FSW, FOP, FIP and FDP."""
    fcw, fsw, _ftw, _, fop, fip, fdp = struct.unpack_from("<HHBBHQQ", raw)
    return fcw, fsw, fop, fip, fdp


@pytest.mark.parametrize("silicon", [SDM, AMD])
@pytest.mark.parametrize(
    ("fcw", "fsw", "stored"),
    [
        pytest.param(0x37F, 0, (0x37F, 0), id="the init values stay"),
        pytest.param(0xFFFF, 0, (0x1F7F, 0), id="FCW: bits 7 and 13..15 are 0"),
        pytest.param(0, 0, (0x40, 0), id="FCW: bit 6 is 1"),
        pytest.param(0x37F, 0x8080, (0x37F, 0), id="ES and B without an exception: cleared"),
        pytest.param(0x37F, 0x3F, (0x37F, 0x3F), id="exceptions that FCW masks: not pending"),
        pytest.param(0x37E, 0x01, (0x37E, 0x8081), id="one that it does not mask: ES and B are set"),
        pytest.param(0x340, 0x40, (0x340, 0x40), id="the stack fault flag is no exception"),
        pytest.param(0x37F, 0x7F00, (0x37F, 0x7F00), id="condition codes and TOP stay"),
    ],
)
def test_control_and_status_words(silicon: Silicon, fcw: int, fsw: int, stored: tuple[int, int]) -> None:
    """Some bits are fixed, and two follow from the others; the same on both makers' processors."""
    assert _head(x87_registers(_image(fcw=fcw, fsw=fsw), silicon))[:2] == stored


@pytest.mark.parametrize(
    ("silicon", "fcw", "stored"),
    [
        pytest.param(SDM, 0x37F, (0x7FF, 1 << 63, 0xFB), id="SDM: kept whatever is pending; FOP has 11 bits"),
        pytest.param(AMD, 0x37F, (0, 0, 0), id="AMD: nothing is pending, so there are none"),
        pytest.param(AMD, 0x37E, (0x7FF, 0, 0xFB), id="AMD: an exception is pending; 57 bits, the rest is the sign"),
    ],
)
def test_pointers(silicon: Silicon, fcw: int, stored: tuple[int, int, int]) -> None:
    """FOP, FIP and FDP: an AMD processor keeps them while an unmasked exception is pending."""
    image = _image(fcw=fcw, fsw=1, fop=0xFFFF, fip=1 << 63, fdp=0xFB)
    assert _head(x87_registers(image, silicon))[2:] == stored


def test_a_pointer_is_sign_extended() -> None:
    """Bit 56 is the sign where 57 bits exist."""
    image = _image(fcw=0x37E, fsw=1, fip=1 << 56)
    assert _head(x87_registers(image, AMD))[3] == 0xFF00_0000_0000_0000


def test_a_register_has_80_bits_and_byte_5_none() -> None:
    """Loading all ones stores ten bytes of each 16, and MXCSR is not x87's."""
    stored = x87_registers(b"\xff" * 160, SDM)
    assert stored[32:160] == (b"\xff" * 10 + bytes(6)) * 8
    assert stored[4:6] == b"\xff\0"
    assert stored[24:32] == bytes(8)
    assert x87_registers(X87_INIT, SDM) == X87_INIT


def test_the_profile_says_which_silicon() -> None:
    """By the maker's name in leaf 0."""
    assert silicon_of(builtin_profile("zen4")) is AMD
    assert silicon_of(builtin_profile("sapphire-rapids")) is SDM


@pytest.mark.parametrize(("name", "inuse"), [("zen4", 0), ("ice-lake", 0x7)])
def test_loading_init_values(name: str, inuse: int) -> None:
    """An image that says present and holds zeros: XINUSE goes by content on AMD, by the load on the other."""
    cpu = Cpu(0, boot(builtin_profile(name)))
    image = bytearray(2700)
    image[0:160] = X87_INIT
    image[MXCSR_OFFSET : MXCSR_OFFSET + 4] = MXCSR_INIT.to_bytes(4, "little")
    MemoryImage(image).xstate_bv = XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM
    assert xrstor_from_memory(cpu, image, _ALL) is None
    assert cpu.xgetbv1() == inuse


def test_content_decides_after_every_load_on_amd() -> None:
    """XINUSE follows the registers back to their init values, MXCSR included."""
    cpu = Cpu(0, boot(builtin_profile("zen4")))
    cpu.write_register(0, 32, b"\1")
    cpu.write_register(1, 0, b"\1")
    cpu.set_mxcsr(0x1FA0)
    assert cpu.xinuse == XFEATURE_MASK_FPSSE
    cpu.write_register(0, 32, b"\0")
    cpu.write_register(1, 0, b"\0")
    assert cpu.xinuse == XFEATURE_MASK_SSE
    cpu.set_mxcsr(MXCSR_INIT)
    assert cpu.xinuse == 0


def test_xsave_of_mxcsr_alone() -> None:
    """XINUSE[1] is 1 for XGETBV and XSAVEC where only MXCSR differs; XSAVE writes XSTATE_BV[1] = 0 and stores it."""
    cpu = Cpu(0, boot(builtin_profile("zen4")))
    cpu.set_mxcsr(0x1FA0)
    standard, compacted = bytearray(2700), bytearray(2700)
    assert cpu.xgetbv1() == XFEATURE_MASK_SSE
    assert xsave_to_memory(cpu, XsaveInsn.XSAVE, standard, _ALL) is None
    assert xsave_to_memory(cpu, XsaveInsn.XSAVEC, compacted, _ALL) is None
    assert MemoryImage(standard).xstate_bv & ~XFEATURE_MASK_FP == 0
    assert MemoryImage(compacted).xstate_bv == XFEATURE_MASK_SSE
    for image in (standard, compacted):
        assert image[24:28] == (0x1FA0).to_bytes(4, "little")


@pytest.mark.parametrize(("offset", "length"), [(24, 8), (25, 3), (20, 8), (28, 4), (24, 3), (0, 160)])
def test_mxcsr_is_written_alone(offset: int, length: int) -> None:
    """LDMXCSR loads four bytes: a write that touches it and more is no instruction there is."""
    cpu = Cpu(0, boot(builtin_profile("sapphire-rapids")))
    with pytest.raises(FieldError, match="exactly the 4 bytes of MXCSR"):
        cpu.write_register(0, offset, bytes(length))
    assert cpu.mxcsr == MXCSR_INIT


@pytest.mark.parametrize(("offset", "length"), [(16, 8), (0, 24), (32, 4)])
def test_what_lies_beside_mxcsr_is_x87s(offset: int, length: int) -> None:
    """A write that ends in front of MXCSR, or begins behind its mask, is one of x87 registers."""
    cpu = Cpu(0, boot(builtin_profile("sapphire-rapids")))
    assert cpu.write_register(0, offset, bytes(length)) is None
    assert (cpu.mxcsr, cpu.xinuse & XFEATURE_MASK_FP) == (MXCSR_INIT, XFEATURE_MASK_FP)
