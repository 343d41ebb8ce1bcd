"""What makes two failures the same one: the check, the faults that fired, and what was found without its numbers."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from fault_lab.sim.run import RunResult

#: A vCPU with what belongs to it, a VM, and numbers of any kind: two runs differ in them without being two bugs.
_NAMES: Final = re.compile(r"vms/[a-z0-9-]+(/vcpus/\d+)?(/exits/\d+)?")
_NUMBERS: Final = re.compile(r"0x[0-9a-f]+|\d+")


def signature(result: RunResult) -> str:
    """The signature of a run that violates something: 12 hexadecimal digits."""
    assert result.violation is not None
    faults = ",".join(sorted({each.fault for each in result.fired}))
    text = f"{result.violation.check}\n{faults}\n{shape(result.violation.text)}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def shape(text: str) -> str:
    """A violation's text without what differs from run to run."""
    return _NUMBERS.sub("#", _NAMES.sub(_kind, text))


def _kind(name: re.Match[str]) -> str:
    vcpu, exit_ = name.groups()
    return "EXIT" if exit_ else "VCPU" if vcpu else "VM"
