"""The validity rules of XCR0, as sentences and against a kernel and a real KVM.

Reference: arch/x86/kvm/x86.c, __kvm_set_xcr() and kvm_emulate_xsetbv().
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from fpu_core.cpu import Vector
from host_agent.kvm.intercept import handle_xsetbv
from host_agent.kvm.outcome import Done, Inject
from host_agent.kvm.xcr0 import moves_cpuid, xcr0_error
from tests.core.world import Guest, World

DATA = Path(__file__).parents[1] / "data"
AMX = 0x602E7
MPX = 0xFF


@pytest.mark.parametrize(
    ("index", "value", "supported", "allowed"),
    [
        pytest.param(0, 0x1, 0x0, True, id="x87 alone is always allowed, even where nothing is supported"),
        pytest.param(0, 0x3, AMX, True, id="x87 and SSE"),
        pytest.param(0, 0x7, AMX, True, id="AVX"),
        pytest.param(0, 0xE7, AMX, True, id="AVX-512"),
        pytest.param(0, 0x207, AMX, True, id="PKRU stands alone"),
        pytest.param(0, 0x60003, AMX, True, id="tiles without AVX"),
        pytest.param(0, 0x602E7, AMX, True, id="everything"),
        pytest.param(0, 0x1F, MPX, True, id="MPX"),
        pytest.param(1, 0x1, AMX, False, id="Write XCR1 - expect #GP"),
        pytest.param(0, 0x0, AMX, False, id="Write XCR0 = 0 - expect #GP"),
        pytest.param(0, 0x2, AMX, False, id="Write XCR0 = SSE without x87 - expect #GP"),
        pytest.param(0, 0x5, AMX, False, id="Write XCR0 = YMM without SSE - expect #GP"),
        pytest.param(0, 0x7, 0x3, False, id="Write XCR0 = YMM where the CPUID has none - expect #GP"),
        pytest.param(0, 1 << 63 | 1, AMX, False, id="Write XCR0 = bit 63 - expect #GP"),
        pytest.param(0, 0x0B, MPX, False, id="Write XCR0 = BNDREGS without BNDCSR - expect #GP"),
        pytest.param(0, 0x13, MPX, False, id="Write XCR0 = BNDCSR without BNDREGS - expect #GP"),
        pytest.param(0, 0x27, AMX, False, id="Write XCR0 = opmask alone of AVX-512 - expect #GP"),
        pytest.param(0, 0x67, AMX, False, id="Write XCR0 = AVX-512 without Hi16_ZMM - expect #GP"),
        pytest.param(0, 0xE3, AMX, False, id="Write XCR0 = AVX-512 without YMM - expect #GP"),
        pytest.param(0, 0x20003, AMX, False, id="Write XCR0 = XTILE_CFG alone - expect #GP"),
        pytest.param(0, 0x40003, AMX, False, id="Write XCR0 = XTILE_DATA alone - expect #GP"),
    ],
)
def test_rule(index: int, value: int, supported: int, allowed: bool) -> None:
    """One value of XCR0 for a guest that may use ``supported``."""
    assert (xcr0_error(index, value, supported) is None) == allowed


def test_against_the_kernels_own_check() -> None:
    """Every combination of 14 bits for four guests: accepted are exactly those that __kvm_set_xcr() of 6.12 accepts."""
    data = json.loads((DATA / "kernel612_kvm_set_xcr_sample.json").read_text(encoding="utf-8"))
    accepted = {(int(supported, 16), int(value, 16)) for supported, value, _ in data["accepted"]}
    values = [sum(1 << bit for bit in bits) for bits in _subsets(data["bits_tried"])]
    supported = [int(each, 16) for each in data["supported_tried"]]
    ours = {(mask, value) for mask in supported for value in values if xcr0_error(0, value, mask) is None}
    assert len(values) == 1 << 14
    assert ours == accepted
    moved = {int(value, 16): bool(moves) for _, value, moves in data["accepted"]}
    assert {value: moves_cpuid(1, value) for value in moved} == moved


def _subsets(bits: list[int]) -> list[tuple[int, ...]]:
    return [each for size in range(len(bits) + 1) for each in itertools.combinations(bits, size)]


def test_against_real_guests() -> None:
    """XSETBV by guest code on a real KVM: #GP or not, value by value."""
    rows = json.loads((DATA / "kvm_guest_xsetbv_sample.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 125
    for row in rows:
        supported = 0xE7 if row["cpuid_set"] else 0
        refused = xcr0_error(0, int(row["xcr0"], 16), supported) is not None
        assert refused == (row["verdict"] == "#GP"), row


@pytest.mark.parametrize(
    ("index", "cpl", "fine"),
    [
        pytest.param(0, 0, True, id="index 0 at CPL 0"),
        pytest.param(1 << 32, 0, True, id="the upper half of RCX is ignored"),
        pytest.param(1 << 32 | 1, 0, False, id="but not the lower one"),
        pytest.param(0, 3, False, id="CPL 3 - expect #GP"),
        pytest.param(0, 1, False, id="CPL 1 - expect #GP"),
    ],
)
def test_intercept(index: int, cpl: int, fine: bool) -> None:
    """XSETBV of 7: committed, or #GP(0) with XCR0 as it was."""
    world = World.create()
    guest = world.create_vcpu("a", 0)
    assert isinstance(guest, Guest)
    fpu = world.tasks["a/main"].fpu
    world.run(fpu, 0)
    world.enter(guest, fpu)
    result = handle_xsetbv(guest.vcpu, index=index, value=7, cpl=cpl)
    if fine:
        assert result == Done()
    else:
        assert isinstance(result, Inject)
        assert (result.vector, result.error_code) == (Vector.GP, 0)
    assert guest.vcpu.xcr0 == (7 if fine else 1)
    world.check()
