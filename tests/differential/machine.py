"""The machine that a file of recorded answers comes from, as far as its note says: a Zen 4 with some XCR0."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from fpu_core.alloc import Account
from fpu_core.config import FpuConfig, boot
from fpu_core.cpuid import CpuidProfile, builtin_profile
from fpu_core.fpu import Fpu, FpuHost

_XCR0: Final = re.compile(r"xcr0=(0x[0-9a-f]+)", re.IGNORECASE)


def recorded_machine(obtained: object) -> FpuConfig:
    """The Zen 4 that ``obtained`` speaks of, with no user component beyond the XCR0 it names.

    Raises ``ValueError`` where it names none: rows of an unknown machine prove nothing.
    """
    found = _XCR0.search(obtained) if isinstance(obtained, str) else None
    if found is None:
        raise ValueError("expected a note 'obtained' that says xcr0=0x...")
    return boot(with_xcr0(builtin_profile("zen4"), int(found[1], 16)))


def with_xcr0(profile: CpuidProfile, xcr0: int) -> CpuidProfile:
    """The processor as a hypervisor shows it that gives the guest only ``xcr0``: flags go with their components."""
    regs = profile.regs(0xD, 0)
    leaves = dict(profile.leaves) | {(0xD, 0): regs._replace(eax=regs.eax & xcr0, edx=regs.edx & xcr0 >> 32)}
    return replace(profile, leaves=leaves)


def stopped_task(config: FpuConfig, name: str = "task") -> Fpu:
    """A task of its own process that has not run yet."""
    host = FpuHost(config)
    fpu = Fpu(host, name, account=Account("process", host.allocator.host))
    fpu.need_load = True
    return fpu
