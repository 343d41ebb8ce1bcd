"""The real guest on /dev/kvm, driven through every answer a trap handler can give.

The trap handler here is a model small enough to read at a glance: XCR0, XFD, XFD_ERR and eight tiles. What a test wants
to go wrong it says in a subclass.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from guest_agent.kvm import (
    MSR_IA32_XFD,
    Done,
    GrowthOrder,
    GuestMark,
    GuestProgram,
    GuestReport,
    Inject,
    KvmError,
    KvmGuest,
    Mark,
    Outcome,
    Stop,
    TileOp,
    TrapResult,
    kvm_available,
)
from guest_agent.kvm.kick import KICK_SIGNAL

UNAVAILABLE = kvm_available()
needs_kvm = pytest.mark.skipif(UNAVAILABLE is not None, reason=f"no KVM guest can run here: {UNAVAILABLE}")

XTILE = 1 << 17 | 1 << 18
XTILE_DATA = 1 << 18
UD, NM, GP = 6, 7, 13

ARMED = GuestProgram(order=GrowthOrder.XFD_ARMED_FIRST, seed=2021)
XCR0_FIRST = GuestProgram(order=GrowthOrder.XCR0_FIRST_WITH_XFD_0, seed=1016)


class Model:
    """A processor with AMX and XFD as far as the guest program can tell; accepts everything."""

    def __init__(self) -> None:
        self.xcr0 = 1
        self.xfd = 0
        self.xfd_err = 0
        self.config = bytes(64)
        self.tiles = [bytes(1024)] * 8
        self.calls: list[str] = []
        self.halted = False

    def xsetbv(self, index: int, value: int) -> TrapResult:
        """Take any value for XCR0."""
        self.calls.append(f"XSETBV {index} {value:#x}")
        self.xcr0 = value
        return Done()

    def wrmsr(self, msr: int, value: int) -> TrapResult:
        """Take any value for XFD and XFD_ERR."""
        self.calls.append(f"WRMSR {msr:#x} {value:#x}")
        if msr == MSR_IA32_XFD:
            self.xfd = value
        else:
            self.xfd_err = value
        return Done()

    def rdmsr(self, msr: int) -> TrapResult:
        """Read XFD or XFD_ERR."""
        self.calls.append(f"RDMSR {msr:#x}")
        return Done(value=self.xfd if msr == MSR_IA32_XFD else self.xfd_err)

    def tile(self, op: TileOp, tile: int, memory: bytes) -> TrapResult:
        """Do the tile instruction: #UD without XCR0, #NM for tile data while XFD is armed."""
        self.calls.append(f"{op.value} {tile}")
        if self.xcr0 & XTILE != XTILE:
            return Inject(UD)
        needs_data = op in (TileOp.TILELOADD, TileOp.TILESTORED, TileOp.TILEZERO)
        if needs_data and self.xfd & XTILE_DATA:
            self.xfd_err = XTILE_DATA
            return Inject(NM, xfd_err=XTILE_DATA)
        match op:
            case TileOp.LDTILECFG:
                self.config, self.tiles = memory, [bytes(1024)] * 8
            case TileOp.TILERELEASE:
                self.config, self.tiles = bytes(64), [bytes(1024)] * 8
            case TileOp.STTILECFG:
                return Done(data=self.config)
            case TileOp.TILELOADD:
                self.tiles[tile] = memory
            case TileOp.TILEZERO:
                self.tiles[tile] = bytes(1024)
            case TileOp.TILESTORED:
                return Done(data=self.tiles[tile])
        return Done()

    def hlt(self) -> TrapResult:
        """Note the end."""
        self.halted = True
        return Done()


def run(model: Model, program: GuestProgram = ARMED) -> GuestReport:
    """Run the program on a real vCPU against the model."""
    return KvmGuest(model, program).run()


# ---- the mail's two ways to grow ----


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


# ---- stopping ----


class StopsAt(Model):
    """Says Stop at the first call of one kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def xsetbv(self, index: int, value: int) -> TrapResult:
        """Stop or go on."""
        return Stop("killed") if self.kind == "xsetbv" else super().xsetbv(index, value)

    def wrmsr(self, msr: int, value: int) -> TrapResult:
        """Stop or go on."""
        return Stop("killed") if self.kind == "wrmsr" else super().wrmsr(msr, value)

    def rdmsr(self, msr: int) -> TrapResult:
        """Stop or go on."""
        return Stop("killed") if self.kind == "rdmsr" else super().rdmsr(msr)

    def tile(self, op: TileOp, tile: int, memory: bytes) -> TrapResult:
        """Stop or go on."""
        return Stop("killed") if self.kind == "tile" else super().tile(op, tile, memory)

    def hlt(self) -> TrapResult:
        """Stop or go on."""
        return Stop("killed") if self.kind == "hlt" else super().hlt()


@needs_kvm
@pytest.mark.parametrize("kind", ["xsetbv", "wrmsr", "rdmsr", "tile", "hlt"])
def test_stop_ends_the_run_in_the_middle_of_any_instruction(kind: str) -> None:
    """A Stop at any trap ends the run with its reason, the pending access completed."""
    report = run(StopsAt(kind))
    assert (report.outcome, report.reason) == (Outcome.STOPPED, "killed")


@needs_kvm
def test_stopped_wrmsr_has_not_happened() -> None:
    """After a Stop in the middle of a WRMSR the guest still stands on it, and has said nothing since."""
    report = run(StopsAt("wrmsr"))
    image = ARMED.image[report.rip - 0x10000 :]
    assert image.startswith(b"\x0f\x30")
    assert report.said == "Bx"


class Runner:
    """A guest in a thread of its own."""

    def __init__(self, guest: KvmGuest) -> None:
        self.report: GuestReport | None = None
        self._guest = guest
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.report = self._guest.run()

    def join(self) -> GuestReport:
        """Wait for the end and return the report."""
        self._thread.join()
        assert self.report is not None
        return self.report


@needs_kvm
def test_kick_stops_a_guest_that_spins() -> None:
    """A guest in an endless loop makes no exit; a kick from another thread gets it out, every time."""
    for _ in range(20):
        spinning = threading.Event()

        def heard(mark: GuestMark, spinning: threading.Event = spinning) -> None:
            if mark.mark is Mark.SPINNING:
                spinning.set()

        guest = KvmGuest(Model(), GuestProgram(spin=True), heard)
        runner = Runner(guest)
        spinning.wait()
        guest.kick()
        report = runner.join()
        assert (report.outcome, report.reason) == (Outcome.STOPPED, "kicked")
        assert report.said.endswith("VS")


@needs_kvm
def test_kick_during_a_blocked_trap_takes_effect_when_it_returns() -> None:
    """The answer of the call that blocked is still carried out, and nothing after it."""
    entered, released = threading.Event(), threading.Event()

    class Blocks(Model):
        def rdmsr(self, msr: int) -> TrapResult:
            entered.set()
            released.wait()
            return super().rdmsr(msr)

    guest = KvmGuest(Blocks(), ARMED)
    runner = Runner(guest)
    entered.wait()
    guest.kick()
    released.set()
    report = runner.join()
    assert (report.outcome, report.said) == (Outcome.STOPPED, "BxAx")


@needs_kvm
def test_kick_before_and_after_the_run() -> None:
    """A guest kicked before its run stops before its first instruction; kicking an ended one is nothing."""
    guest = KvmGuest(Model(), ARMED)
    guest.kick()
    report = guest.run()
    guest.kick()
    assert (report.outcome, report.said) == (Outcome.STOPPED, "")


@needs_kvm
def test_foreign_signal_does_not_stop_the_guest() -> None:
    """An EINTR that nobody asked for is entered again."""
    spinning = threading.Event()

    def heard(mark: GuestMark) -> None:
        if mark.mark is Mark.SPINNING:
            signal.pthread_kill(threading.get_ident(), KICK_SIGNAL)
            spinning.set()

    guest = KvmGuest(Model(), GuestProgram(spin=True), heard)
    runner = Runner(guest)
    spinning.wait()
    os.kill(os.getpid(), KICK_SIGNAL)
    guest.kick()
    assert runner.join().said.endswith("VS")


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
