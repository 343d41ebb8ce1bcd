"""Reading processors from ``cpuid -r`` dumps."""

from __future__ import annotations

import pytest

from fpu_core.config import boot
from fpu_core.cpuid import (
    CpuidProfile,
    CpuidRegs,
    builtin_profile,
    builtin_profile_names,
    format_cpuid_dump,
    parse_cpuid_dump,
)
from fpu_core.errors import FieldError

_LEAF_1 = "   0x00000001 0x00: eax=0x000806f8 ebx=0x00000000 ecx=0x7ffefbff edx=0xbfebfbff"


@pytest.mark.parametrize("name", builtin_profile_names())
def test_round_trip(name: str) -> None:
    """A dump written by us is read back as the same processor, with the same configuration."""
    profile = builtin_profile(name)
    again = parse_cpuid_dump(format_cpuid_dump(profile), name=name)
    assert again == profile
    assert boot(again).kernel == boot(profile).kernel


def test_only_the_first_processor_of_a_dump_counts() -> None:
    """A dump of a whole machine lists every logical processor; blank lines and comments are skipped."""
    text = f"# a comment\n\nCPU 0:\n{_LEAF_1}\nCPU 1:\n   0x00000001 0x00: nonsense\n"
    assert parse_cpuid_dump(text, name="x").regs(0x1) == CpuidRegs(0x806F8, 0, 0x7FFEFBFF, 0xBFEBFBFF)


def test_leaf_that_is_not_there_reads_as_zeros() -> None:
    """As on the processor."""
    assert CpuidProfile("x", {}).regs(0x1D, 1) == CpuidRegs(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("CPU 0:\n   hello", "cpuid dump line 2: .*hello", id="a line that is none is named by its number"),
        pytest.param("CPU 0:\n" + _LEAF_1[:-1], "cpuid dump line 2", id="a register of seven digits"),
        pytest.param("", "leaf 0x00000001", id="an empty dump lacks leaf 1"),
        pytest.param(
            f"{_LEAF_1}\n   0x0000000d 0x00: eax=0x00060007 ebx=0x0 ecx=0x0 edx=0x0",
            "cpuid dump line 2",
            id="short registers",
        ),
        pytest.param(
            f"{_LEAF_1}\n   0x0000000d 0x00: eax=0x00060007 ebx=0x00000000 ecx=0x00000000 edx=0x00000000",
            "0xD.2, 0xD.17, 0xD.18",
            id="sub-leaves that 0xD.0 reports and the dump lacks are named",
        ),
    ],
)
def test_bad_dump(text: str, message: str) -> None:
    """A dump that cannot be trusted is refused, with what is wrong."""
    with pytest.raises(FieldError, match=message):
        parse_cpuid_dump(text, name="x")


def test_sub_leaf_of_size_zero_is_as_good_as_missing() -> None:
    """EAX = 0 for a component that is reported: its size would have to be guessed."""
    leaves = dict(builtin_profile("sapphire-rapids").leaves)
    leaves[0xD, 18] = CpuidRegs(0, 0, 0, 0)
    with pytest.raises(FieldError, match=r"0xD\.18"):
        CpuidProfile("truncated", leaves)


def test_unknown_profile_lists_the_known_ones() -> None:
    """The refusal says what there is."""
    with pytest.raises(FieldError, match=r"profile: .*goldmont.*zen4.* got 'pentium'"):
        builtin_profile("pentium")
