"""The real guest: a VMM of one vCPU on /dev/kvm whose XCR0, XFD and tiles live behind a trap handler.

`KvmGuest.run` makes a VM, loads the program, and enters the guest until it halts or is stopped:

    KVM_RUN -> exit -> Forwarder -> TrapHandler (may block) -> answer into the vCPU -> KVM_RUN ...

It starts no thread; the calling thread is the vCPU's.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from guest_agent.kvm.cpuid import supported_xcr0
from guest_agent.kvm.error import KvmError
from guest_agent.kvm.exit import Halted, Interrupted, PortWrite
from guest_agent.kvm.forwarder import Forwarder
from guest_agent.kvm.kick import install_kick_signal
from guest_agent.kvm.long_mode import kernel_sregs
from guest_agent.kvm.program import MEMORY_SIZE, GuestProgram, Port
from guest_agent.kvm.report import GuestReport
from guest_agent.kvm.trap import Stop, TrapHandler
from guest_agent.kvm.vcpu import Vcpu
from guest_agent.kvm.vm import KVM_DEVICE, Kvm, Vm
from guest_agent.report import GuestMark, Mark, Outcome, halted_outcome


class KvmGuest:
    """One run of a guest program under KVM.

    `run` is called once, from any thread; `kick`, `pause` and `resume` from any thread at any time. `on_event` is
    called for each thing the guest says, from the vCPU's thread, as it says it; what it raises comes out of `run`.

    Attributes:
        entries: how often the vCPU was entered.
        waits: whether the vCPU's thread stands outside the guest because it is paused.

    Raises:
        KvmError: made outside the main thread before `install_kick_signal` was called in it.
    """

    def __init__(
        self,
        trap_handler: TrapHandler,
        program: GuestProgram | None = None,
        on_event: Callable[[GuestMark], None] | None = None,
        *,
        device: Path = KVM_DEVICE,
    ) -> None:
        install_kick_signal()
        self._handler = trap_handler
        self._program = program or GuestProgram()
        self._on_event = on_event
        self._device = device
        self._marks: list[GuestMark] = []
        self._exits: Counter[str] = Counter()
        self._started = False
        self._kicked = False
        self._paused = False
        self._entered = False
        self.entries = 0
        self.waits = False
        self._turn = threading.Condition(threading.RLock())
        self._running: tuple[Vcpu, int] | None = None  # the vCPU and the thread it runs in

    def run(self) -> GuestReport:
        """Run the guest to its end and report.

        Raises:
            OSError: the KVM device cannot be opened (`kvm_available` tells beforehand).
            KvmError: KVM refused something, or the guest broke down.
            RuntimeError: a second run of the same guest.
        """
        if self._started:
            raise RuntimeError("a KvmGuest runs once; make another")
        self._started = True
        with Kvm(self._device) as kvm, kvm.create_vm(memory_size=MEMORY_SIZE) as vm:
            cpuid = kvm.supported_cpuid()
            with vm.create_vcpu(cpuid) as vcpu, self._kickable(vcpu):
                return self._run_loaded(vm, vcpu, supported_xcr0(cpuid))

    def kick(self) -> None:
        """Stop the guest: `run` reports STOPPED, reason ``"kicked"``, before the guest executes much more.

        A vCPU that is blocked in the trap handler stops when that call returns. Kicking a guest that has ended, or
        not begun, is fine; one that has not begun stops before its first instruction.
        """
        with self._turn:
            self._kicked = True
            self._expel()
            self._turn.notify_all()

    def pause(self) -> None:
        """Keep the vCPU out of the guest until `resume`; when this returns it is out. A kick ends the pause.

        A vCPU that is blocked in the trap handler is out already; it stays so when that call returns.
        """
        with self._turn:
            self._paused = True
            self._expel()
            self._turn.wait_for(lambda: not self._entered)

    def resume(self) -> None:
        """Let the vCPU go on where it was; nothing to do if it is not paused."""
        with self._turn:
            self._paused = False
            self._turn.notify_all()

    def _expel(self) -> None:
        if self._running is not None:
            vcpu, thread_id = self._running
            vcpu.kick(thread_id)

    @contextmanager
    def _kickable(self, vcpu: Vcpu) -> Iterator[None]:
        """Let `kick` reach this vCPU, and nobody once it is about to be closed."""
        with self._turn:
            self._running = (vcpu, threading.get_ident())
            if self._kicked:
                vcpu.kick(threading.get_ident())
        try:
            yield
        finally:
            with self._turn:
                self._running = None

    @contextmanager
    def _in_guest(self, vcpu: Vcpu) -> Iterator[None]:
        """Wait out a pause, and let nobody think that the vCPU is outside while it is not."""
        with self._turn:
            self.waits = self._paused
            self._turn.wait_for(lambda: self._kicked or not self._paused)
            self.waits = False
            if not self._kicked:
                vcpu.let_in()
            self._entered = True
            self.entries += 1
        try:
            yield
        finally:
            with self._turn:
                self._entered = False
                self._turn.notify_all()

    def _run_loaded(self, vm: Vm, vcpu: Vcpu, xcr0: int) -> GuestReport:
        self._program.load(vm.memory, supported_xcr0=xcr0)
        vcpu.set_sregs(kernel_sregs(vcpu.get_sregs()))
        vcpu.set_regs(self._program.initial_regs())
        forwarder = Forwarder(self._handler, vcpu=vcpu, memory=vm.memory, program=self._program, supported_xcr0=xcr0)
        stop = self._loop(vcpu, forwarder)
        return GuestReport(
            outcome=self._halted(vcpu) if stop is None else Outcome.STOPPED,
            reason="" if stop is None else stop.reason,
            marks=tuple(self._marks),
            exits=dict(self._exits),
            tiles=self._program.read_stored(vm.memory),
            rip=vcpu.regs.rip,
        )

    def _loop(self, vcpu: Vcpu, forwarder: Forwarder) -> Stop | None:
        """Enter the guest until it has halted (None) or is stopped."""
        while True:
            with self._in_guest(vcpu):
                vcpu_exit = vcpu.run()
            if isinstance(vcpu_exit, Interrupted):
                if self._kicked:
                    return Stop("kicked")
                continue  # a pause, or somebody else's signal
            self._exits[vcpu.exit_name] += 1
            if isinstance(vcpu_exit, PortWrite) and vcpu_exit.port == Port.MARK:
                self._note(vcpu_exit.byte, vcpu)
                continue
            stop = forwarder.forward(vcpu_exit)
            if stop is not None:
                forwarder.settle(vcpu_exit)
                return stop
            if isinstance(vcpu_exit, Halted):
                return None

    def _note(self, letter: int, vcpu: Vcpu) -> None:
        try:
            mark = GuestMark(Mark(chr(letter)), vcpu.regs.rbx)
        except ValueError as error:
            raise KvmError(f"the guest said 0x{letter:x}", exit_reason=vcpu.exit_name, rip=vcpu.regs.rip) from error
        self._marks.append(mark)
        if self._on_event is not None:
            self._on_event(mark)

    def _halted(self, vcpu: Vcpu) -> Outcome:
        outcome = halted_outcome(tuple(self._marks))
        if outcome is None:
            said = "".join(mark.mark.value for mark in self._marks)
            raise KvmError(
                f"the guest halted after {said!r}, before it said how it ended",
                exit_reason=vcpu.exit_name,
                rip=vcpu.regs.rip,
            )
        return outcome
