"""CpuidProfile: a processor as CPUID describes it.

A profile is the raw leaves and nothing else; what follows from them is computed in ``config.py``. Six processors are
built in as ``cpuid -r`` dumps under ``profiles/``; any other comes from such a dump, or from the running processor
(``host_agent.cpuid_native``). A dump that leaves out a sub-leaf it says exists is refused: the sizes and offsets of
that component would have to be guessed.

Source of the bit positions: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Final, NamedTuple

from fpu_core.errors import FieldError
from fpu_core.xfeature import for_each_set_bit


class CpuidRegs(NamedTuple):
    """EAX, EBX, ECX and EDX of one (leaf, sub-leaf): four unsigned 32-bit values."""

    eax: int
    ebx: int
    ecx: int
    edx: int


ABSENT: Final = CpuidRegs(0, 0, 0, 0)


class CpuCaps(NamedTuple):
    """The CPU capability flags that the FPU core looks at, by the kernel's names (X86_FEATURE_*), each 0 or 1."""

    FPU: bool = True
    FXSR: bool = True
    XMM: bool = True
    XSAVE: bool = False
    XSAVEOPT: bool = False
    XSAVEC: bool = False
    XGETBV1: bool = False
    XSAVES: bool = False
    XFD: bool = False
    AVX: bool = False
    MPX: bool = False
    AVX512F: bool = False
    INTEL_PT: bool = False
    #: Taken from CPUID.7 ECX[3] (PKU): the kernel sets CR4.PKE, and with it OSPKE, wherever PKU exists.
    OSPKE: bool = False
    ENQCMD: bool = False
    SHSTK: bool = False
    ARCH_LBR: bool = False
    AMX_TILE: bool = False
    APX: bool = False
    #: AMD's misaligned SSE mode: MXCSR has bit 17 (MM).
    MISALIGNSSE: bool = False

    @property
    def xcompacted(self) -> bool:
        """Whether kernel images are compacted: XSAVEC or XSAVES. Source: arch/x86/kernel/fpu/xstate.c."""
        return self.XSAVEC or self.XSAVES


#: Which bit of which (leaf, sub-leaf, register) makes which capability.
_CAP_BITS: Final[dict[str, tuple[int, int, str, int]]] = {
    "FPU": (0x1, 0, "edx", 0),
    "FXSR": (0x1, 0, "edx", 24),
    "XMM": (0x1, 0, "edx", 25),
    "XSAVE": (0x1, 0, "ecx", 26),
    "XSAVEOPT": (0xD, 1, "eax", 0),
    "XSAVEC": (0xD, 1, "eax", 1),
    "XGETBV1": (0xD, 1, "eax", 2),
    "XSAVES": (0xD, 1, "eax", 3),
    "XFD": (0xD, 1, "eax", 4),
    "AVX": (0x1, 0, "ecx", 28),
    "MPX": (0x7, 0, "ebx", 14),
    "AVX512F": (0x7, 0, "ebx", 16),
    "INTEL_PT": (0x7, 0, "ebx", 25),
    "OSPKE": (0x7, 0, "ecx", 3),
    "SHSTK": (0x7, 0, "ecx", 7),
    "ENQCMD": (0x7, 0, "ecx", 29),
    "ARCH_LBR": (0x7, 0, "edx", 19),
    "AMX_TILE": (0x7, 0, "edx", 24),
    "APX": (0x7, 1, "edx", 21),
    "MISALIGNSSE": (0x8000_0001, 0, "ecx", 7),
}


@dataclass(frozen=True, slots=True)
class CpuidProfile:
    """One processor's CPUID leaves.

    ``leaves`` maps (leaf, sub-leaf) to the four registers. A (leaf, sub-leaf) that is not there reads as zeros, as on
    the processor. ``caps`` overrides what the leaves say, for data that carries flags but not leaves 1 and 7.
    """

    name: str
    leaves: Mapping[tuple[int, int], CpuidRegs]
    caps_override: CpuCaps | None = field(default=None)

    def __post_init__(self) -> None:
        missing = missing_subleaves(self)
        if missing:
            names = ", ".join(f"0xD.{nr}" for nr in missing)
            raise FieldError(
                "cpuid", f"sub-leaves {names}, which 0xD.0 or 0xD.1 report", f"dump of {self.name} without"
            )

    def regs(self, leaf: int, subleaf: int = 0) -> CpuidRegs:
        """Return the registers of (leaf, sub-leaf), zeros where the processor has none."""
        return self.leaves.get((leaf, subleaf), ABSENT)

    @property
    def caps(self) -> CpuCaps:
        """The capability flags, from ``caps_override`` or else from the leaves."""
        if self.caps_override is not None:
            return self.caps_override
        return CpuCaps(**{name: bool(self._bit(*where)) for name, where in _CAP_BITS.items()})

    def _bit(self, leaf: int, subleaf: int, register: str, bit: int) -> int:
        return int(getattr(self.regs(leaf, subleaf), register)) >> bit & 1

    @property
    def xcr0_mask(self) -> int:
        """XCR0 bits the processor supports: CPUID.0xD.0 EDX:EAX."""
        regs = self.regs(0xD, 0)
        return regs.edx << 32 | regs.eax

    @property
    def xss_mask(self) -> int:
        """IA32_XSS bits the processor supports: CPUID.0xD.1 EDX:ECX."""
        regs = self.regs(0xD, 1)
        return regs.edx << 32 | regs.ecx


#: Components whose sub-leaf must be in a dump. Others (LWP, bit 62) are never used by the kernel.
_NEEDED_COMPONENTS: Final = range(2, 20)


def missing_subleaves(profile: CpuidProfile) -> list[int]:
    """Return the components 2..19 that 0xD.0 or 0xD.1 report and whose sub-leaf is absent or has size 0."""
    reported = profile.xcr0_mask | profile.xss_mask
    return [nr for nr in for_each_set_bit(reported) if nr in _NEEDED_COMPONENTS and profile.regs(0xD, nr).eax == 0]


_DUMP_LINE: Final = re.compile(
    r"^\s*0x(?P<leaf>[0-9a-f]{8})\s+0x(?P<subleaf>[0-9a-f]{2,8}):\s+"
    r"eax=0x(?P<eax>[0-9a-f]{8})\s+ebx=0x(?P<ebx>[0-9a-f]{8})\s+"
    r"ecx=0x(?P<ecx>[0-9a-f]{8})\s+edx=0x(?P<edx>[0-9a-f]{8})\s*$",
    re.IGNORECASE,
)


def parse_cpuid_dump(text: str, *, name: str) -> CpuidProfile:
    """Read the output of ``cpuid -r`` (the first processor of it) into a profile.

    Raises ``FieldError`` naming the line that cannot be read, the leaf that is missing, or the sub-leaves left out.
    """
    leaves: dict[tuple[int, int], CpuidRegs] = {}
    headings = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line.startswith("CPU"):
            headings += 1
            if headings > 1:  # the second logical processor: heterogeneous parts are not modelled
                break
            continue
        match = _DUMP_LINE.match(line)
        if match is None:
            raise FieldError(
                f"cpuid dump line {number}", "'0xLEAF 0xSUB: eax=0x... ebx=0x... ecx=0x... edx=0x...'", line
            )
        key = (int(match["leaf"], 16), int(match["subleaf"], 16))
        leaves[key] = CpuidRegs(*(int(match[reg], 16) for reg in ("eax", "ebx", "ecx", "edx")))
    if (0x1, 0) not in leaves:
        raise FieldError("cpuid dump", "leaf 0x00000001, without which nothing can be said", f"{len(leaves)} leaves")
    return CpuidProfile(name, leaves)


def format_cpuid_dump(profile: CpuidProfile) -> str:
    """Write the leaves of ``profile`` as ``cpuid -r`` does; ``parse_cpuid_dump`` reads it back."""
    lines = ["CPU 0:"]
    for (leaf, subleaf), regs in sorted(profile.leaves.items()):
        values = " ".join(f"{name}=0x{value:08x}" for name, value in zip(regs._fields, regs, strict=True))
        lines.append(f"   0x{leaf:08x} 0x{subleaf:02x}: {values}")
    return "\n".join(lines) + "\n"


def builtin_profile_names() -> list[str]:
    """Return the names ``builtin_profile`` takes, sorted."""
    folder = resources.files("fpu_core") / "profiles"
    return sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt"))


def builtin_profile(name: str) -> CpuidProfile:
    """Return a built-in processor by name; ``FieldError`` lists the names there are."""
    if name not in builtin_profile_names():
        raise FieldError("profile", f"one of {', '.join(builtin_profile_names())}", name)
    text = (resources.files("fpu_core") / "profiles" / f"{name}.txt").read_text(encoding="ascii")
    return parse_cpuid_dump(text, name=name)


assert set(_CAP_BITS) == set(CpuCaps._fields), "every capability has its bit"
