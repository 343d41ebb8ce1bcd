"""The instructions and events of a vCPU as methods, for whatever submits them: a blocking port or an asyncio one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from guest_agent.event import (
    Enter,
    GuestEvent,
    Hlt,
    Init,
    Leave,
    Nm,
    Preempt,
    Rdmsr,
    RegisterRead,
    RegisterWrite,
    Tile,
    TileOp,
    WriteCr4,
    Wrmsr,
    XfdSync,
    Xgetbv,
    Xsave,
    XsaveInsn,
    Xsetbv,
)

#: What submitting gives: an outcome, or an awaitable of one.
Answer = TypeVar("Answer")


class Instructions(ABC, Generic[Answer]):
    """One method for each kind of event; what it returns, and what it raises, is `submit`'s.

    Numbers that do not fit the wire (64 bits for values, 32 for the rest) raise ValueError before anything is sent.
    """

    @abstractmethod
    def submit(self, event: GuestEvent) -> Answer:
        """Send one event and give its final outcome."""

    def enter(self, task: str = "") -> Answer:
        """KVM_RUN begins, on the host task `vms/{vm}/tasks/{task}`; empty for the vCPU's own. For run mode EXPLICIT."""
        return self.submit(Enter(task))

    def leave(self) -> Answer:
        """KVM_RUN returns. For run mode EXPLICIT."""
        return self.submit(Leave())

    def preempt(self, cpu: int | None = None) -> Answer:
        """The vCPU's thread loses its CPU and goes on on `cpu`, the index of a modelled one; None for the same."""
        return self.submit(Preempt(cpu))

    def xsetbv(self, value: int, *, index: int = 0, cpl: int = 0) -> Answer:
        """XSETBV of `value` to the extended control register `index` at privilege level `cpl`."""
        return self.submit(Xsetbv(value, index, cpl))

    def wrmsr(self, msr: int, *, value: int) -> Answer:
        """WRMSR of IA32_XFD (0x1c4), IA32_XFD_ERR (0x1c5) or IA32_XSS (0xda0)."""
        return self.submit(Wrmsr(msr, value))

    def rdmsr(self, msr: int) -> Answer:
        """RDMSR of IA32_XFD (0x1c4), IA32_XFD_ERR (0x1c5) or IA32_XSS (0xda0): `Done.value`."""
        return self.submit(Rdmsr(msr))

    def nm(self, *, cr0_ts: bool = False) -> Answer:
        """The guest raised #NM with this CR0.TS; always `Injected` with the XFD_ERR that it is to read."""
        return self.submit(Nm(cr0_ts))

    def write_register(self, feature: int, *, data: bytes, offset: int = 0) -> Answer:
        """The guest loads `data` at byte `offset` of the state component `feature`."""
        return self.submit(RegisterWrite(feature, offset, data))

    def read_register(self, feature: int, *, length: int, offset: int = 0) -> Answer:
        """`length` bytes at byte `offset` of the state component `feature`: `Done.data`."""
        return self.submit(RegisterRead(feature, offset, length))

    def tile(self, op: TileOp, *, tile: int = 0, memory: bytes = b"") -> Answer:
        """Execute a tile instruction; see `guest_agent.event.Tile` for `memory`. `Done.data` holds what it stores."""
        return self.submit(Tile(op, tile, memory))

    def xsave(self, insn: XsaveInsn, rfbm: int, memory: bytes, *, misaligned_by: int = 0) -> Answer:
        """Execute an XSAVE instruction on the guest's `memory`; `Done.data` is the memory after one that stores."""
        return self.submit(Xsave(insn, rfbm, memory, misaligned_by))

    def xfd_sync(self, xfd: int) -> Answer:
        """IA32_XFD as read after a vmexit, once writes of it pass through."""
        return self.submit(XfdSync(xfd))

    def init(self) -> Answer:
        """The vCPU received INIT; the one event that may be sent while another is pending, which it cancels."""
        return self.submit(Init())

    def hlt(self) -> Answer:
        """The guest executed HLT."""
        return self.submit(Hlt())

    def xgetbv(self, index: int = 0) -> Answer:
        """XGETBV of the extended control register `index`: `Done.value`."""
        return self.submit(Xgetbv(index))

    def write_cr4(self, value: int) -> Answer:
        """MOV of `value` to CR4; OSXSAVE (bit 18) and PKE (bit 22) are what counts."""
        return self.submit(WriteCr4(value))
