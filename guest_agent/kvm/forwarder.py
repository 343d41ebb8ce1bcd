"""From an exit to a call on the trap handler, and from its answer back into the guest."""

from __future__ import annotations

import struct
from typing import NamedTuple, assert_never

from guest_agent.event import TileOp
from guest_agent.kvm.decode import INSTRUCTION_BYTES_MAX, TileInstruction, decode_tile
from guest_agent.kvm.error import KvmError
from guest_agent.kvm.exit import Halted, MsrRead, MsrWrite, PortWrite
from guest_agent.kvm.long_mode import GP_VECTOR, NM_VECTOR, UD_VECTOR, user_sregs
from guest_agent.kvm.memory import GuestAddressError, GuestMemory
from guest_agent.kvm.program import GuestProgram, Port
from guest_agent.kvm.tile import CONFIG_BYTES, TILE_BYTES, UNCONFIGURED, gather_tile, read_shapes, scatter_tile
from guest_agent.kvm.trap import Done, Inject, Stop, TrapHandler, TrapResult
from guest_agent.kvm.vcpu import Vcpu
from guest_agent.kvm.vm import MSR_IA32_XFD

_XSETBV = bytes.fromhex("0f01d1")
_WRMSR = bytes.fromhex("0f30")
_OUT_IMM8_BYTES = 2


class ExceptionFrame(NamedTuple):
    """What the processor pushes for an exception without an error code, from RSP upwards."""

    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


class Forwarder:
    """Turns one vCPU's exits into trap handler calls. It decides nothing about XCR0, XFD or tiles."""

    def __init__(
        self, handler: TrapHandler, *, vcpu: Vcpu, memory: GuestMemory, program: GuestProgram, supported_xcr0: int
    ) -> None:
        self._handler = handler
        self._vcpu = vcpu
        self._memory = memory
        self._program = program
        self._supported_xcr0 = supported_xcr0
        self._accepted_xcr0: int | None = None  # of the XSETBV just announced, until the guest executes it
        self._shapes = UNCONFIGURED

    def forward(self, vcpu_exit: PortWrite | MsrRead | MsrWrite | Halted) -> Stop | None:
        """Ask the handler about this exit and carry out its answer; return a Stop instead of carrying it out.

        Raises:
            KvmError: the answer fits no such exit, or the guest program left its own protocol.
        """
        try:
            match vcpu_exit:
                case MsrWrite(msr=msr, value=value):
                    return self._wrmsr(msr, value)
                case MsrRead(msr=msr):
                    return self._rdmsr(msr)
                case Halted():
                    return self._hlt()
                case PortWrite(port=port):
                    return self._port(port)
        except GuestAddressError as error:
            raise self._error(f"the guest named memory it does not have: {error}") from error

    def settle(self, vcpu_exit: PortWrite | MsrRead | MsrWrite | Halted) -> None:
        """Leave the vCPU without a half-done access, when a Stop came in the middle of this exit.

        A stopped MSR access has not happened, so it is completed as refused: nothing was committed, and a #GP that will
        never be delivered is what is in flight.
        """
        if isinstance(vcpu_exit, MsrRead | MsrWrite):
            self._vcpu.refuse_msr()
        self._vcpu.complete()

    def _wrmsr(self, msr: int, value: int) -> Stop | None:
        match self._handler.wrmsr(msr, value):
            case Done():
                self._vcpu.answer_write()
            case Inject(vector=vector) if vector == NM_VECTOR and msr == MSR_IA32_XFD:
                self._nm_at_wrmsr()
            case Inject() as fault:
                self._require_gp("WRMSR", fault)
                self._vcpu.refuse_msr()
            case Stop() as stop:
                return stop
            case answer:
                assert_never(answer)
        return None

    def _nm_at_wrmsr(self) -> None:
        """Deliver #NM at the WRMSR: let it end, and step back. KVM itself can only refuse one with #GP.

        The WRMSR has no effect on the real XFD, which the guest has not got.
        """
        self._vcpu.answer_write()
        self._vcpu.complete()
        regs = self._vcpu.regs
        regs.rip -= len(_WRMSR)
        if self._memory.read(regs.rip, len(_WRMSR)) != _WRMSR:
            raise self._error("a WRMSR was trapped and is not in front of RIP")
        self._vcpu.set_regs(regs)
        self._vcpu.inject(NM_VECTOR)

    def _rdmsr(self, msr: int) -> Stop | None:
        match self._handler.rdmsr(msr):
            case Done(value=value):
                if value is None or not 0 <= value < 1 << 64:
                    raise self._error(f"RDMSR of 0x{msr:x}: expected 64 bits in Done.value, got {value}")
                self._vcpu.answer_read(value)
            case Inject() as fault:
                self._require_gp("RDMSR", fault)
                self._vcpu.refuse_msr()
            case Stop() as stop:
                return stop
            case answer:
                assert_never(answer)
        return None

    def _hlt(self) -> Stop | None:
        match self._handler.hlt():
            case Inject(vector=vector):
                raise self._error(f"HLT: expected Done or Stop, got vector {vector}")
            case Stop() as stop:
                return stop
            case Done():
                return None
            case answer:
                assert_never(answer)

    def _port(self, port: int) -> Stop | None:
        match port:
            case Port.XSETBV:
                return self._xsetbv_announced()
            case Port.UD:
                return self._undefined_opcode()
            case Port.XSETBV_GP:
                self._xsetbv_faulted()
                return None
            case _:
                raise self._error(f"port 0x{port:x} is none of the program's")

    # ---- XSETBV ----

    def _xsetbv_announced(self) -> Stop | None:
        """Ask before the processor gets to see the XSETBV: KVM executes it and tells nobody."""
        regs = self._vcpu.regs
        low = 0xFFFFFFFF
        value = (regs.rdx & low) << 32 | regs.rax & low
        self._accepted_xcr0 = None
        match self._handler.xsetbv(regs.rcx & low, value):
            case Done():
                self._accepted_xcr0 = value
            case Inject() as fault:
                self._require_gp("XSETBV", fault)
                regs.rip = self._announced_rip(regs.rip)
                self._vcpu.set_regs(regs)
                self._vcpu.inject(GP_VECTOR, 0)
            case Stop() as stop:
                return stop
            case answer:
                assert_never(answer)
        return None

    def _announced_rip(self, rip: int) -> int:
        """Return where the announced XSETBV is: KVM completes an OUT late or early, so RIP is on it or behind."""
        for candidate in (rip, rip + _OUT_IMM8_BYTES):
            if self._memory.read(candidate, len(_XSETBV)) == _XSETBV:
                return candidate
        raise self._error("an XSETBV was announced and does not follow")

    def _xsetbv_faulted(self) -> None:
        """Skip an XSETBV that the model accepted and the processor refused, which has no tiles or must not show them.

        The processor's XCR0 gets the part of the value it supports, so that the vector registers follow the model.
        """
        if self._accepted_xcr0 is None:
            return
        self._vcpu.set_xcr0(self._accepted_xcr0 & self._supported_xcr0)
        self._accepted_xcr0 = None
        saved_rip = self._vcpu.regs.rax
        self._memory.write_u64(saved_rip, self._memory.read_u64(saved_rip) + len(_XSETBV))

    # ---- tile instructions ----

    def _undefined_opcode(self) -> Stop | None:
        regs = self._vcpu.regs
        frame = ExceptionFrame(*struct.unpack("<5Q", self._memory.read(regs.rsp, 40)))
        instruction = self._decode(frame)
        if instruction is None:
            self._true_ud()
            return None
        match self._ask(instruction):
            case Done(data=content):
                self._finish(instruction, content)
                self._memory.write_u64(regs.rsp, frame.rip + instruction.length)
            case Inject(vector=vector) if vector == UD_VECTOR:
                self._true_ud()
            case Inject() as fault:
                self._fault_in_ring3(frame, fault)
            case Stop() as stop:
                return stop
            case answer:
                assert_never(answer)
        return None

    def _decode(self, frame: ExceptionFrame) -> TileInstruction | None:
        if frame.cs & 3 != 3:
            return None
        gprs = list(self._vcpu.regs.gprs)
        gprs[4] = frame.rsp  # the stub runs on ring 0's stack
        size = min(INSTRUCTION_BYTES_MAX, self._memory.size - frame.rip)
        return decode_tile(self._memory.read(frame.rip, size), rip=frame.rip, gprs=gprs)

    def _ask(self, instruction: TileInstruction) -> TrapResult:
        read = b""
        if instruction.op is TileOp.LDTILECFG:
            assert instruction.address is not None
            read = self._memory.read(instruction.address, CONFIG_BYTES)
        elif instruction.op is TileOp.TILELOADD:
            read = gather_tile(self._memory, instruction, self._shapes[instruction.tile])
        result = self._handler.tile(instruction.op, instruction.tile, read)
        if isinstance(result, Done):
            self._note_shapes(instruction.op, read)
        return result

    def _note_shapes(self, op: TileOp, config: bytes) -> None:
        if op is TileOp.LDTILECFG:
            self._shapes = read_shapes(config)
        elif op is TileOp.TILERELEASE:
            self._shapes = UNCONFIGURED

    def _finish(self, instruction: TileInstruction, content: bytes) -> None:
        """Write to guest memory what the instruction stores."""
        expected = {TileOp.STTILECFG: CONFIG_BYTES, TileOp.TILESTORED: TILE_BYTES}.get(instruction.op, 0)
        if len(content) != expected:
            raise self._error(f"{instruction.op.value}: expected {expected} bytes in Done.data, got {len(content)}")
        if instruction.op is TileOp.STTILECFG:
            assert instruction.address is not None
            self._memory.write(instruction.address, content)
        elif instruction.op is TileOp.TILESTORED:
            scatter_tile(self._memory, instruction, self._shapes[instruction.tile], content)

    def _true_ud(self) -> None:
        """Deliver the #UD that nothing forwards: go to the program's fault stub, with the exception frame as it is."""
        regs = self._vcpu.regs
        regs.rip = self._program.fault_stub(UD_VECTOR)
        self._vcpu.set_regs(regs)

    def _fault_in_ring3(self, frame: ExceptionFrame, fault: Inject) -> None:
        """Go back to the tile instruction in ring 3, and have KVM deliver the fault there."""
        if fault.vector not in (NM_VECTOR, GP_VECTOR):
            raise self._error(f"a tile instruction: expected vector 6, 7 or 13, got {fault.vector}")
        self._vcpu.set_sregs(user_sregs(self._vcpu.get_sregs()))
        regs = self._vcpu.regs
        regs.rip, regs.rsp, regs.rflags = frame.rip, frame.rsp, frame.rflags
        self._vcpu.set_regs(regs)
        self._vcpu.inject(fault.vector, (fault.error_code or 0) if fault.vector == GP_VECTOR else None)

    def _require_gp(self, instruction: str, fault: Inject) -> None:
        if fault.vector != GP_VECTOR:
            raise self._error(f"{instruction}: expected vector 13, got {fault.vector}")

    def _error(self, what: str) -> KvmError:
        return KvmError(what, exit_reason=self._vcpu.exit_name, rip=self._vcpu.regs.rip)
