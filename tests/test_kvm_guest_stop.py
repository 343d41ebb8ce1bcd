"""Stopping the real guest: by the trap handler's word, by a kick from another thread, by nobody else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from guest_agent.kvm import (
    MSR_IA32_XFD,
    GuestMark,
    GuestProgram,
    GuestReport,
    Inject,
    KvmGuest,
    Mark,
    Outcome,
    Stop,
    TileOp,
    TrapResult,
)
from guest_agent.kvm.kick import KICK_SIGNAL
from tests.kvm_model import ARMED, NM, Model, needs_kvm, run

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


# ---- pausing ----


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread brings about; the test's own timeout ends a wait in vain."""
    while not condition():
        time.sleep(0.005)


@needs_kvm
def test_pause_takes_a_spinning_guest_out_and_resume_lets_it_go_on() -> None:
    """It makes no exit of its own: it is out when `pause` returns, is entered no more, and spins again afterwards."""
    spinning = threading.Event()

    def heard(mark: GuestMark) -> None:
        if mark.mark is Mark.SPINNING:
            spinning.set()

    guest = KvmGuest(Model(), GuestProgram(spin=True), heard)
    runner = Runner(guest)
    spinning.wait()
    for _ in range(20):
        guest.pause()
        until(lambda: guest.waits)
        entries = guest.entries
        guest.pause()  # twice is once
        assert (guest.waits, guest.entries) == (True, entries)
        guest.resume()
        until(lambda entries=entries: guest.entries > entries)  # type: ignore[misc]
    guest.kick()
    assert runner.join().said.endswith("VS")


@needs_kvm
def test_pauses_at_any_moment_lose_nothing() -> None:
    """A guest that is paused again and again while it works finds every tile as it loaded it."""
    guest = KvmGuest(Model(), GuestProgram(rounds=10, seed=7))
    guest.pause()
    runner = Runner(guest)
    pauses = 0
    while runner.report is None:
        guest.pause()
        until(lambda: guest.waits or runner.report is not None)
        pauses += guest.waits
        entries = guest.entries
        guest.resume()
        until(lambda entries=entries: guest.entries > entries or runner.report is not None)  # type: ignore[misc]
    assert runner.join().outcome is Outcome.VERIFIED
    assert pauses > 0


@needs_kvm
def test_pause_in_a_blocked_trap_holds_when_it_returns() -> None:
    """The vCPU is outside: `pause` returns at once, and the guest goes on behind the answer only when it is resumed."""
    entered, released = threading.Event(), threading.Event()

    class Blocks(Model):
        def rdmsr(self, msr: int) -> TrapResult:
            entered.set()
            released.wait()
            return super().rdmsr(msr)

    guest = KvmGuest(Blocks(), ARMED)
    runner = Runner(guest)
    entered.wait()
    guest.pause()
    released.set()
    until(lambda: guest.waits)
    assert runner.report is None
    guest.resume()
    assert runner.join().outcome is Outcome.VERIFIED


@needs_kvm
def test_a_kick_ends_a_pause() -> None:
    """Whoever stops a guest need not know that it is paused."""
    guest = KvmGuest(Model(), ARMED)
    guest.pause()
    runner = Runner(guest)
    until(lambda: guest.waits)
    guest.kick()
    assert runner.join().outcome is Outcome.STOPPED


@needs_kvm
def test_nm_at_a_wrmsr_is_taken_there() -> None:
    """The decision INJECT_NM: the guest's handler runs once more and writes XFD again, and all tiles are as loaded."""

    class Again(Model):
        refused = 0

        def wrmsr(self, msr: int, value: int) -> TrapResult:
            if msr == MSR_IA32_XFD and value == 0 and self.xfd and not self.refused:
                self.refused += 1
                self.xfd_err = self.xfd
                return Inject(NM, None, self.xfd)
            return super().wrmsr(msr, value)

    model = Again()
    report = run(model)
    assert (report.outcome, model.refused) == (Outcome.VERIFIED, 1)
    assert report.said.count("N") == 2


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
