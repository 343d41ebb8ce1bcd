"""Why a vCPU left the guest: struct kvm_run read once, into a value."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from guest_agent.kvm import api
from guest_agent.kvm.error import KvmError
from guest_agent.kvm.run_page import KvmRun

_DIRECTION_OUT = 1


@dataclass(frozen=True, slots=True)
class PortWrite:
    """The guest wrote a byte to a port."""

    port: int
    byte: int


@dataclass(frozen=True, slots=True)
class MsrWrite:
    """The guest executes WRMSR on a filtered MSR; it has not happened yet, RIP is still on it."""

    msr: int
    value: int


@dataclass(frozen=True, slots=True)
class MsrRead:
    """The guest executes RDMSR on a filtered MSR; RIP is still on it."""

    msr: int


@dataclass(frozen=True, slots=True)
class Halted:
    """The guest executed HLT."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """KVM_RUN came back with EINTR or EAGAIN: a signal or immediate_exit. struct kvm_run holds an older exit."""


VcpuExit = PortWrite | MsrWrite | MsrRead | Halted | Interrupted


def exit_name(run: KvmRun) -> str:
    """Return KVM's name of the exit reason, ``"KVM_EXIT_42"`` for one this VMM never heard of."""
    return api.EXIT_NAMES.get(run.exit_reason, f"KVM_EXIT_{run.exit_reason}")


def read_exit(run: KvmRun, page: mmap.mmap) -> VcpuExit:
    """Read the exit out of `run`, after a KVM_RUN that returned 0; `page` is the whole shared page.

    Raises:
        KvmError: the exit is one that no guest program of ours makes, or that KVM cannot go on from.
    """
    match run.exit_reason:
        case api.KVM_EXIT_IO:
            return _port_write(run, page)
        case api.KVM_EXIT_X86_RDMSR | api.KVM_EXIT_X86_WRMSR:
            return _msr_access(run)
        case api.KVM_EXIT_HLT:
            return Halted()
        case _:
            raise _fatal(run)


def _port_write(run: KvmRun, page: mmap.mmap) -> PortWrite:
    io = run.exit.io
    if (io.direction, io.size, io.count) != (_DIRECTION_OUT, 1, 1):
        raise _unexpected(run, f"port 0x{io.port:x}: expected one byte written")
    return PortWrite(port=io.port, byte=page[io.data_offset])


def _msr_access(run: KvmRun) -> MsrRead | MsrWrite:
    msr = run.exit.msr
    if msr.reason != api.KVM_MSR_EXIT_REASON_FILTER:
        raise _unexpected(run, f"MSR 0x{msr.index:x}: expected reason FILTER (4), got {msr.reason}")
    if run.exit_reason == api.KVM_EXIT_X86_RDMSR:
        return MsrRead(msr=msr.index)
    return MsrWrite(msr=msr.index, value=msr.data)


def _fatal(run: KvmRun) -> KvmError:
    match run.exit_reason:
        case api.KVM_EXIT_SHUTDOWN:
            return _unexpected(run, "the guest took a triple fault")
        case api.KVM_EXIT_INTERNAL_ERROR:
            suberror = run.exit.internal.suberror
            return _unexpected(run, "KVM could not execute or emulate the guest's instruction", suberror)
        case api.KVM_EXIT_FAIL_ENTRY:
            suberror = run.exit.fail_entry.hardware_entry_failure_reason
            return _unexpected(run, "the processor refused the guest's state", suberror)
        case _:
            return _unexpected(run, "no guest program of ours leads here")


def _unexpected(run: KvmRun, what: str, suberror: int | None = None) -> KvmError:
    # KVM_CAP_SYNC_REGS: the registers are in the page after every KVM_RUN, after a fatal one too.
    return KvmError(what, exit_reason=exit_name(run), rip=run.regs.rip, suberror=suberror)
