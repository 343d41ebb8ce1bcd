"""The real guest: a small VMM on /dev/kvm and the guest program it runs.

The guest is real machine code; what it traps on (XSETBV, XFD, XFD_ERR, tile instructions, HLT) is decided by a
`TrapHandler`, one blocking call per instruction. So the founding mail's story runs with a real guest on any x86-64
processor, with or without AMX.

    guest = KvmGuest(my_trap_handler, program=GuestProgram(seed=7))
    report = guest.run()            # this thread is the vCPU; report.outcome is Outcome.VERIFIED

Standard library only.
"""

from __future__ import annotations

from guest_agent.event import TileOp
from guest_agent.kvm.error import KvmError
from guest_agent.kvm.kick import install_kick_signal
from guest_agent.kvm.program import GrowthOrder, GuestProgram
from guest_agent.kvm.report import GuestReport
from guest_agent.kvm.trap import Done, Inject, Stop, TrapHandler, TrapResult
from guest_agent.kvm.vm import MSR_IA32_XFD, MSR_IA32_XFD_ERR, kvm_available
from guest_agent.kvm.vmm import KvmGuest
from guest_agent.report import GuestMark, Mark, Outcome

__all__ = [
    "MSR_IA32_XFD",
    "MSR_IA32_XFD_ERR",
    "Done",
    "GrowthOrder",
    "GuestMark",
    "GuestProgram",
    "GuestReport",
    "Inject",
    "KvmError",
    "KvmGuest",
    "Mark",
    "Outcome",
    "Stop",
    "TileOp",
    "TrapHandler",
    "TrapResult",
    "install_kick_signal",
    "kvm_available",
]
