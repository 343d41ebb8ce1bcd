"""A real guest or a trap handler that breaks the rules, and what is left behind by many runs."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from guest_agent.kvm import (
    Done,
    GrowthOrder,
    GuestMark,
    GuestProgram,
    Inject,
    KvmError,
    KvmGuest,
    Mark,
    Outcome,
    TileOp,
    TrapResult,
    kvm_available,
)
from guest_agent.kvm.kick import KICK_SIGNAL
from tests.kvm_model import ARMED, GP, NM, UD, Model, needs_kvm, run

# ---- a guest or a handler that breaks the rules ----


def image_with(code: str) -> bytes:
    """Return the shipped image with machine code (hex) behind it, where the first entry goes."""
    image = ARMED.image
    start = (0x10000 + len(image)).to_bytes(8, "little")
    return image[:8] + start + image[16:] + bytes.fromhex(code)


@needs_kvm
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("b03fe6e0", "KVM_EXIT_IO at rip .*: the guest said 0x3f"),
        ("e6ee", "KVM_EXIT_IO at rip .*: port 0xee is none of the program's"),
        ("66e7e0", "KVM_EXIT_IO at rip .*: port 0xe0: expected one byte written"),
        ("b8ffffff7fe6e3f4", "KVM_EXIT_HLT at rip .*: the guest halted after ''"),
        ("bcf8ff1f00e6e2", "KVM_EXIT_IO at rip .*: the guest named memory it does not have: 0x1ffff8 .* 40"),
    ],
    ids=["unknown mark", "unknown port", "a word to a port", "silent halt", "#UD frame outside"],
)
def test_guest_that_breaks_its_protocol_is_an_error(code: str, message: str) -> None:
    """A guest that does what no program of ours does ends in a KvmError that tells the exit and where."""
    with pytest.raises(KvmError, match=message) as caught:
        run(Model(), GuestProgram(image=image_with(code)))
    assert caught.value.rip is not None


@needs_kvm
def test_undefined_opcode_of_ring_0_is_never_forwarded() -> None:
    """A tile instruction outside ring 3 is a true #UD: the model is not asked."""
    model = Model()
    # Claim a #UD with a frame of zeros on the stack: CS 0 is ring 0.
    report = run(model, GuestProgram(image=image_with("bc00001000e6e2")))
    assert report.outcome is Outcome.FAULTED
    assert report.marks[0] == GuestMark(Mark.FAULT, UD)
    assert model.calls == []


@needs_kvm
def test_triple_fault_is_an_error_with_the_exit_reason() -> None:
    """An exception whose entries all lie outside memory shuts the guest down; the error says SHUTDOWN."""
    image = bytearray(image_with("0f0b"))
    outside = (1 << 32).to_bytes(8, "little")
    for position in range(16, 56, 8):  # the header's exception entries and stubs
        image[position : position + 8] = outside
    with pytest.raises(KvmError, match="triple fault") as caught:
        run(Model(), GuestProgram(image=bytes(image)))
    assert caught.value.exit_reason == "KVM_EXIT_SHUTDOWN"


class AnswersWrongly(Model):
    """Gives answers that fit no such instruction."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def xsetbv(self, index: int, value: int) -> TrapResult:
        """#NM for XSETBV."""
        return Inject(NM) if self.kind == "xsetbv" else super().xsetbv(index, value)

    def wrmsr(self, msr: int, value: int) -> TrapResult:
        """#UD for WRMSR."""
        return Inject(UD) if self.kind == "wrmsr" else super().wrmsr(msr, value)

    def rdmsr(self, msr: int) -> TrapResult:
        """No value for RDMSR."""
        return Done() if self.kind == "rdmsr" else super().rdmsr(msr)

    def tile(self, op: TileOp, tile: int, memory: bytes) -> TrapResult:
        """A double fault, or bytes where none are stored."""
        if self.kind == "tile vector":
            return Inject(8)
        return Done(data=b"?") if self.kind == "tile bytes" else super().tile(op, tile, memory)

    def hlt(self) -> TrapResult:
        """#GP for HLT."""
        return Inject(GP) if self.kind == "hlt" else super().hlt()


@needs_kvm
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("xsetbv", "XSETBV: expected vector 13, got 7"),
        ("wrmsr", "WRMSR: expected vector 13, got 6"),
        ("rdmsr", "RDMSR of 0x1c5: expected 64 bits in Done.value, got None"),
        ("tile vector", "a tile instruction: expected vector 6, 7 or 13, got 8"),
        ("tile bytes", "LDTILECFG: expected 0 bytes in Done.data, got 1"),
        ("hlt", "HLT: expected Done or Stop, got vector 13"),
    ],
)
def test_answer_that_fits_no_such_instruction_is_an_error(kind: str, message: str) -> None:
    """A trap handler's impossible answer is named, and never put into the guest."""
    with pytest.raises(KvmError, match=message):
        run(AnswersWrongly(kind))


@needs_kvm
def test_what_the_handler_raises_comes_out_of_run() -> None:
    """An exception of the trap handler is the caller's own, an IndexError too."""

    class Breaks(Model):
        def wrmsr(self, msr: int, value: int) -> TrapResult:
            raise IndexError("mine")

    with pytest.raises(IndexError, match="mine"):
        run(Breaks())


@needs_kvm
def test_a_guest_runs_once() -> None:
    """A second run of the same guest is the caller's mistake."""
    guest = KvmGuest(Model())
    guest.run()
    with pytest.raises(RuntimeError, match="runs once"):
        guest.run()


# ---- nothing is left behind ----


def left_open() -> tuple[int, int, int]:
    """Count this process's open files, its vCPU mappings and its threads."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return len(list(Path("/proc/self/fd").iterdir())), maps.count("kvm-vcpu"), threading.active_count()


@needs_kvm
def test_sixty_runs_end_alike_and_leave_nothing() -> None:
    """Run after run the guest verifies its tiles, and files, mappings and threads are as before."""
    before = left_open()
    for n in range(30):
        for order in GrowthOrder:
            assert run(Model(), GuestProgram(order=order, seed=n)).outcome is Outcome.VERIFIED
    assert left_open() == before


@needs_kvm
@pytest.mark.parametrize("kind", ["xsetbv", "tile vector", "rdmsr"])
def test_failed_runs_leave_nothing(kind: str) -> None:
    """A run that ends in an exception closes everything too, while the exception is still held."""
    before = left_open()
    with pytest.raises(KvmError) as caught:
        run(AnswersWrongly(kind))
    assert left_open() == before
    assert caught.value.exit_reason.startswith("KVM_EXIT_")


# ---- where it cannot run ----


def test_missing_device_is_a_reason_in_words(tmp_path: Path) -> None:
    """Without the device the reason names it."""
    reason = kvm_available(tmp_path / "kvm")
    assert reason is not None
    assert reason.endswith(("kvm: No such file or directory", "aarch64"))


def test_other_file_is_no_kvm(tmp_path: Path) -> None:
    """A file that is no KVM device fails at the API version."""
    (tmp_path / "kvm").write_bytes(b"")
    reason = kvm_available(tmp_path / "kvm")
    assert reason is not None
    assert "KVM_GET_API_VERSION" in reason


@needs_kvm
def test_kick_signal_must_be_installed_by_the_main_thread() -> None:
    """A guest made by another thread, before anybody installed the signal, is refused with what to do."""
    previous = signal.signal(KICK_SIGNAL, signal.SIG_DFL)
    refused: list[str] = []

    def make() -> None:
        try:
            KvmGuest(Model())
        except KvmError as error:
            refused.append(str(error))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    signal.signal(KICK_SIGNAL, previous)
    assert refused == ["kick: call install_kick_signal() from the main thread first"]
