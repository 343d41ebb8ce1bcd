"""A virtual CPU: entering the guest, answering what it trapped on, and stopping it."""

from __future__ import annotations

import errno
import mmap
import os
from types import TracebackType
from typing import Self

from guest_agent.kvm.api import KVM_SYNC_X86_REGS, ioctl, raw_ioctl
from guest_agent.kvm.error import KvmError
from guest_agent.kvm.exit import Interrupted, VcpuExit, exit_name, read_exit
from guest_agent.kvm.kick import send_kick
from guest_agent.kvm.run_page import KvmRun
from guest_agent.kvm.structs import KvmCpuid, KvmRegs, KvmSregs, KvmVcpuEvents, KvmXcrs


class Vcpu:
    """A vCPU file descriptor and its shared page. One thread runs it; `kick` alone is for other threads.

    After each `run` that was not Interrupted exactly one answer is due where the exit was an MSR access: `answer_read`,
    `answer_write` or `refuse_msr`. KVM carries it out at the start of the next KVM_RUN, before the guest runs.
    """

    def __init__(self, fd: int, *, cpuid: KvmCpuid, mmap_size: int) -> None:
        self._fd = fd
        try:
            self._page = mmap.mmap(fd, mmap_size)
        except OSError:
            os.close(fd)
            raise
        self._run = KvmRun.from_buffer(self._page)
        self._run.kvm_valid_regs = KVM_SYNC_X86_REGS
        try:
            ioctl(fd, "KVM_SET_CPUID2", cpuid)
        except BaseException:
            self.close()
            raise

    def run(self) -> VcpuExit:
        """Enter the guest and return why it left.

        Raises:
            KvmError: KVM refused, or the guest is beyond going on; the error carries exit reason, RIP and suberror.
        """
        result, error = raw_ioctl(self._fd, "KVM_RUN")
        if result == 0:
            # A copy is read: a view of the page in some exception's traceback would keep it from being unmapped.
            return read_exit(KvmRun.from_buffer_copy(self._page), self._page)
        # exit_reason is stale here: it tells of an older exit.
        if error in (errno.EINTR, errno.EAGAIN):
            return Interrupted()
        raise KvmError(os.strerror(error), exit_reason="KVM_RUN", rip=self.regs.rip)

    @property
    def exit_name(self) -> str:
        """KVM's name of the last exit that was not Interrupted."""
        return exit_name(self._run)

    @property
    def regs(self) -> KvmRegs:
        """A copy of the general registers as of the last exit; the page has them after every KVM_RUN."""
        return KvmRegs.from_buffer_copy(self._run.regs)

    def set_regs(self, regs: KvmRegs) -> None:
        """Set the general registers. Do it before `inject`: KVM drops a pending exception when registers are set."""
        ioctl(self._fd, "KVM_SET_REGS", regs)

    def get_sregs(self) -> KvmSregs:
        """Return a copy of the segment, table and control registers."""
        sregs = KvmSregs()
        ioctl(self._fd, "KVM_GET_SREGS", sregs)
        return sregs

    def set_sregs(self, sregs: KvmSregs) -> None:
        """Set the segment, table and control registers."""
        ioctl(self._fd, "KVM_SET_SREGS", sregs)

    def set_xcr0(self, value: int) -> None:
        """Set the real XCR0 of the vCPU; `value` may hold supported bits alone."""
        xcrs = KvmXcrs(nr_xcrs=1)
        xcrs.xcrs[0].value = value
        ioctl(self._fd, "KVM_SET_XCRS", xcrs)

    def inject(self, vector: int, error_code: int | None = None) -> None:
        """Make the guest take an exception at its present RIP on the next entry."""
        events = KvmVcpuEvents()
        events.exception.injected = 1
        events.exception.nr = vector
        events.exception.has_error_code = int(error_code is not None)
        events.exception.error_code = error_code or 0
        ioctl(self._fd, "KVM_SET_VCPU_EVENTS", events)

    def answer_read(self, value: int) -> None:
        """Let the RDMSR just trapped read `value`, and go on behind it."""
        self._run.exit.msr.data = value
        self._run.exit.msr.error = 0

    def answer_write(self) -> None:
        """Let the WRMSR just trapped count as done, and go on behind it."""
        self._run.exit.msr.error = 0

    def refuse_msr(self) -> None:
        """Make the RDMSR or WRMSR just trapped fault with #GP(0)."""
        self._run.exit.msr.error = 1

    def complete(self) -> None:
        """Carry out the answer to the last exit without running the guest.

        A port or MSR access that userspace has seen stays half done until the next KVM_RUN; a vCPU that is to be
        looked at, saved or dropped is completed first.
        """
        self._run.immediate_exit = 1
        if not isinstance(self.run(), Interrupted):
            raise KvmError("immediate_exit was not honoured", exit_reason=self.exit_name, rip=self.regs.rip)

    def kick(self, thread_id: int) -> None:
        """Take the vCPU out of the guest: the present `run` in that thread, and each until `let_in`, is Interrupted.

        The flag alone does not wake a vCPU that is in the guest, the signal alone is lost on one that is just before
        it: together they have no gap.
        """
        self._run.immediate_exit = 1
        send_kick(thread_id)

    def let_in(self) -> None:
        """Let the next `run` enter the guest again. Not while another thread may call `kick`: that would be lost."""
        self._run.immediate_exit = 0

    def close(self) -> None:
        """Unmap the page and close the vCPU; no other thread may be using it."""
        self._run = KvmRun()  # the page cannot be unmapped while a view of it lives
        self._page.close()
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
