"""Silicon: what the architecture leaves to the processor and software can see, one named property each.

The rules of chapter 13 are the same everywhere and are in ``cpu.py`` and ``xsave.py``. What is here was measured:
``AMD`` on a bare Zen 4 (recorded images and faults) and on a Zen 5 (``python -m tests.differential live-cpu``).
``SDM`` is what the Intel manual says, and the rule of the recorded kernel sequences; it has not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fpu_core.cpuid import CpuidProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Silicon:
    """One maker's choices. Every field names a behaviour, never a processor."""

    name: str
    #: XINUSE[i] says whether the registers differ from their init values *now*. Otherwise a component that was loaded
    #: is in use until it is initialised, whatever was loaded. SDM vol. 1, 13.6 allows both.
    xinuse_by_content: bool
    #: The x87 instruction, its opcode and its operand (FIP, FOP, FDP) are kept only while an unmasked x87 exception is
    #: pending, and read as zero otherwise. AMD APM vol. 2, 11.4.4.
    x87_pointers_need_exception: bool
    #: How many bits of FIP and FDP exist: the rest is the sign. None: all 64.
    x87_pointer_bits: int | None


SDM: Final = Silicon(name="SDM", xinuse_by_content=False, x87_pointers_need_exception=False, x87_pointer_bits=None)
AMD: Final = Silicon(name="AMD", xinuse_by_content=True, x87_pointers_need_exception=True, x87_pointer_bits=57)

#: CPUID.0 EBX: the first four letters of the maker's name.
_VENDOR_AMD: Final = int.from_bytes(b"Auth", "little")
_VENDOR_HYGON: Final = int.from_bytes(b"Hygo", "little")


def silicon_of(profile: CpuidProfile) -> Silicon:
    """Return the table of the maker that leaf 0 names; ``SDM`` where it names none we know."""
    return AMD if profile.regs(0x0).ebx in (_VENDOR_AMD, _VENDOR_HYGON) else SDM
