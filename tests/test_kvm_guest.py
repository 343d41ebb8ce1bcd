"""The real guest on /dev/kvm: growth, refusals and faults, through every answer a trap handler can give."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest_agent.kvm import (
    MSR_IA32_XFD,
    Done,
    GrowthOrder,
    GuestMark,
    GuestProgram,
    Inject,
    KvmGuest,
    Mark,
    Outcome,
    TileOp,
    TrapResult,
)
from tests.kvm_model import ARMED, GP, NM, UD, XCR0_FIRST, XTILE_DATA, Model, needs_kvm, run


@needs_kvm
def test_xfd_write_of_the_nm_handler_makes_the_tiles_usable() -> None:
    """With XFD armed the first TILELOADD takes #NM; the handler reads XFD_ERR, clears both, and the load is retried."""
    model = Model()
    report = run(model)
    assert report.outcome is Outcome.VERIFIED
    assert report.said.replace("v", "") == "BxAxNGV"
    assert model.calls[:10] == [
        "XSETBV 0 0x7",
        "WRMSR 0x1c4 0x40000",
        "XSETBV 0 0x602e7",
        "LDTILECFG 0",
        "TILELOADD 0",
        "RDMSR 0x1c5",
        "WRMSR 0x1c5 0x0",
        "WRMSR 0x1c4 0x0",
        "TILELOADD 0",
        "TILELOADD 1",
    ]
    assert model.halted


@needs_kvm
def test_xsetbv_with_xfd_zero_makes_the_tiles_usable() -> None:
    """With XFD left at 0 it is the XSETBV that grows, and no #NM ever comes."""
    model = Model()
    report = run(model, XCR0_FIRST)
    assert report.outcome is Outcome.VERIFIED
    assert report.said.replace("v", "") == "BxxGV"
    assert not [call for call in model.calls if "MSR" in call]


@needs_kvm
@pytest.mark.parametrize(
    "program", [ARMED, XCR0_FIRST, GuestProgram(seed=2**64 - 1, rounds=3)], ids=lambda p: str(p.seed)
)
def test_tiles_read_back_are_the_bytes_the_seed_makes(program: GuestProgram) -> None:
    """The pattern the guest loaded, round after round, is what it stored, and what we compute ourselves."""
    report = run(Model(), program)
    assert report.tiles == program.expected_tiles()
    assert len(set(report.tiles)) > 200


@needs_kvm
def test_marks_carry_their_values_and_come_as_they_are_said() -> None:
    """The guest reports the XFD_ERR it read and the XCR0 it wrote, and on_event hears each mark once, in order."""
    heard: list[GuestMark] = []
    report = KvmGuest(Model(), ARMED, heard.append).run()
    assert tuple(heard) == report.marks
    assert GuestMark(Mark.BOOTED, 2021) in heard
    assert GuestMark(Mark.XCR0_WRITTEN, 0x602E7) in heard
    assert GuestMark(Mark.DEVICE_NOT_AVAILABLE, XTILE_DATA) in heard
    assert GuestMark(Mark.VERIFIED, 8192) in heard


@needs_kvm
def test_exits_are_counted_by_kvm_reason() -> None:
    """The story takes three WRMSR exits, one RDMSR and one HLT, however many port writes."""
    exits = dict(run(Model()).exits)
    assert exits.pop("KVM_EXIT_IO") > 20
    assert exits == {"KVM_EXIT_X86_WRMSR": 3, "KVM_EXIT_X86_RDMSR": 1, "KVM_EXIT_HLT": 1}


@needs_kvm
def test_vector_registers_survive_every_trap() -> None:
    """Where the processor has AVX the guest keeps a pattern in all its vector registers until the end."""
    if "avx" not in Path("/proc/cpuinfo").read_text(encoding="ascii").split():
        pytest.skip("this processor has no AVX")
    intact = [mark.value for mark in run(Model()).marks if mark.mark is Mark.VECTORS_INTACT]
    assert intact in ([16 * 32], [32 * 64])


@needs_kvm
def test_vectors_are_left_alone_when_not_asked_for() -> None:
    """A program without vectors reports nothing about them."""
    assert run(Model(), GuestProgram(vectors=False)).said == "BxAxNGV"


# ---- refusals: #GP in the guest ----


class RefusesGrowth(Model):
    """Refuses the XFD write that would make the fpstate grow."""

    def wrmsr(self, msr: int, value: int) -> TrapResult:
        """#GP for clearing XFD."""
        if msr == MSR_IA32_XFD and self.xfd & ~value:
            self.calls.append("refused")
            return Inject(GP, error_code=0)
        return super().wrmsr(msr, value)


class RefusesXcr0(Model):
    """Refuses the XSETBV with this value."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.refused_value = value

    def xsetbv(self, index: int, value: int) -> TrapResult:
        """#GP for the one value."""
        return Inject(GP, error_code=0) if value == self.refused_value else super().xsetbv(index, value)


@needs_kvm
def test_nm_handler_survives_the_refused_xfd_write() -> None:
    """The #GP inside the #NM handler is fixed up; the guest says so, releases its tiles and halts in order."""
    model = RefusesGrowth()
    report = run(model)
    assert report.outcome is Outcome.REFUSED
    assert report.said.replace("v", "") == "BxAxNRW"
    assert model.calls[-2:] == ["refused", "TILERELEASE 0"]
    assert model.halted
    assert model.xfd == XTILE_DATA
    assert report.tiles == bytes(8192)


@needs_kvm
@pytest.mark.parametrize(("value", "said"), [(0x602E7, "BxRW"), (0x7, "BRW")], ids=["with tiles", "the first"])
@pytest.mark.parametrize("order", list(GrowthOrder))
def test_refused_xsetbv_faults_though_the_processor_would_take_it(value: int, said: str, order: GrowthOrder) -> None:
    """The model's #GP reaches the guest at its XSETBV, for a value KVM itself accepts too."""
    model = RefusesXcr0(value)
    report = run(model, GuestProgram(order=order))
    assert report.outcome is Outcome.REFUSED
    assert report.said.replace("A", "") == said
    assert model.xcr0 != value


@needs_kvm
def test_ud_of_the_model_is_a_true_ud() -> None:
    """A tile instruction that the model does not have ends the program at its fault stub, not in a loop."""

    class WithoutTiles(Model):
        def tile(self, op: TileOp, tile: int, memory: bytes) -> TrapResult:
            return Inject(UD)

    report = run(WithoutTiles())
    assert report.outcome is Outcome.FAULTED
    assert report.said == "BxAxF@"
    assert report.marks[-2] == GuestMark(Mark.FAULT, UD)


@needs_kvm
def test_gp_on_a_tile_instruction_is_reported_with_its_place() -> None:
    """A #GP that no fix-up expects is a fault with vector and RIP."""

    class RefusesConfig(Model):
        def tile(self, op: TileOp, tile: int, memory: bytes) -> TrapResult:
            return Inject(GP, error_code=0)

    report = run(RefusesConfig())
    assert report.outcome is Outcome.FAULTED
    fault, place = report.marks[-2:]
    assert fault == GuestMark(Mark.FAULT, GP)
    assert 0x10000 < place.value < 0x11000


@needs_kvm
def test_nm_without_xfd_err_is_no_xfd_matter() -> None:
    """An #NM whose XFD_ERR reads 0 is a fault to this program: it does not touch XFD."""

    class ForgetsXfdErr(Model):
        def rdmsr(self, msr: int) -> TrapResult:
            return Done(value=0)

    model = ForgetsXfdErr()
    report = run(model)
    assert report.outcome is Outcome.FAULTED
    assert report.marks[-2] == GuestMark(Mark.FAULT, NM)
    assert model.xfd == XTILE_DATA


@needs_kvm
def test_write_that_does_not_take_effect_is_seen_by_the_next_nm() -> None:
    """A skipped XFD write leaves XFD armed; the retried load takes #NM again, and the handler runs again."""

    class DefersTwice(Model):
        deferred = 0

        def wrmsr(self, msr: int, value: int) -> TrapResult:
            if msr == MSR_IA32_XFD and value == 0 and self.deferred < 2:
                self.deferred += 1
                return Done()
            return super().wrmsr(msr, value)

    report = run(DefersTwice())
    assert report.outcome is Outcome.VERIFIED
    assert report.said.replace("v", "") == "BxAxNGNGNGV"


# ---- bytes that changed on the way ----


@needs_kvm
@pytest.mark.parametrize("op", [TileOp.TILESTORED, TileOp.STTILECFG])
def test_one_wrong_byte_is_a_mismatch(op: TileOp) -> None:
    """The guest itself notices a single bit that came back changed."""

    class Corrupts(Model):
        def tile(self, op_: TileOp, tile: int, memory: bytes) -> TrapResult:
            result = super().tile(op_, tile, memory)
            if op_ is op and isinstance(result, Done):
                return Done(data=bytes([result.data[0] ^ 1]) + result.data[1:])
            return result

    report = run(Corrupts())
    assert report.outcome is Outcome.MISMATCH
    assert report.marks[-1].mark is Mark.MISMATCH
