"""CPUID of the running processor, as a profile: a few bytes of machine code in an executable page.

No /dev/cpu/*/cpuid is needed, and so no privilege. Only x86-64 has the instruction; everywhere else this says so.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from typing import Final, Self

from fpu_core.cpuid import ABSENT, CpuidProfile, CpuidRegs
from fpu_core.xfeature import for_each_set_bit

#: void cpuid(u32 leaf /* edi */, u32 subleaf /* esi */, u32 out[4] /* rdx */): System V calling convention.
_CODE: Final = bytes.fromhex(
    "53"  # push rbx           ; CPUID overwrites it, the caller wants it back
    "4989d0"  # mov r8, rdx    ; CPUID overwrites edx as well
    "89f8"  # mov eax, edi
    "89f1"  # mov ecx, esi
    "0fa2"  # cpuid
    "418900"  # mov [r8], eax
    "41895804"  # mov [r8+4], ebx
    "41894808"  # mov [r8+8], ecx
    "4189500c"  # mov [r8+12], edx
    "5b"  # pop rbx
    "c3"  # ret
)


class NoCpuidError(RuntimeError):
    """The running processor has no CPUID, or its code may not be run here."""


def native_profile(name: str = "native") -> CpuidProfile:
    """Read the leaves that matter to FPU state from the processor this runs on.

    Raises ``NoCpuidError`` on another architecture and ``FieldError`` for a processor whose leaves contradict each
    other, which hypervisors have been seen to make.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise NoCpuidError(f"CPUID is an instruction of x86-64; this is {platform.machine()}")
    with _Cpuid() as cpuid:
        leaves = {(leaf, 0): cpuid(leaf, 0) for leaf in (0x0, 0x1, 0x8000_0001)}
        top = leaves[0x0, 0].eax
        leaves |= {(0x7, subleaf): cpuid(0x7, subleaf) for subleaf in range(3) if top >= 0x7}
        if top >= 0xD:
            leaves |= {(0xD, 0): cpuid(0xD, 0), (0xD, 1): cpuid(0xD, 1)}
            xcr0 = leaves[0xD, 0].edx << 32 | leaves[0xD, 0].eax
            xss = leaves[0xD, 1].edx << 32 | leaves[0xD, 1].ecx
            leaves |= {(0xD, nr): cpuid(0xD, nr) for nr in for_each_set_bit((xcr0 | xss) & ~3)}
        leaves |= {(leaf, sub): cpuid(leaf, sub) for leaf, sub in ((0x1D, 0), (0x1D, 1), (0x1E, 0)) if top >= leaf}
    return CpuidProfile(name, {key: regs for key, regs in leaves.items() if regs != ABSENT})


class _Cpuid:
    """The instruction, callable; the page lives as long as the context."""

    def __enter__(self) -> Self:
        try:
            self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except OSError as error:
            raise NoCpuidError(f"no executable page for CPUID: {error.strerror}") from error
        self._page.write(_CODE)
        self._anchor = ctypes.c_char.from_buffer(self._page)
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32 * 4))
        self._call = prototype(ctypes.addressof(self._anchor))
        return self

    def __exit__(self, *_exc: object) -> None:
        del self._call, self._anchor  # the views first, or the page cannot be closed
        self._page.close()

    def __call__(self, leaf: int, subleaf: int) -> CpuidRegs:
        out = (ctypes.c_uint32 * 4)()
        self._call(leaf, subleaf, ctypes.byref(out))
        return CpuidRegs(*out)
