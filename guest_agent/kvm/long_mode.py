"""Long mode as the guest program finds it: page tables, GDT, IDT, TSS and the registers that point at them.

Guest memory below 0x7000 holds the tables. Source: SDM vol. 3, the sections named beside each.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from guest_agent.kvm.memory import GuestMemory
from guest_agent.kvm.structs import KvmDtable, KvmSegment, KvmSregs

BP_VECTOR, UD_VECTOR, NM_VECTOR, GP_VECTOR = 3, 6, 7, 13
VECTORS = 32

_PML4, _PDPT, _PD, _GDT, _IDT, _TSS = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000
_KERNEL_CS, _KERNEL_SS, _USER_SS, _USER_CS, _TSS_SELECTOR = 0x08, 0x10, 0x18 | 3, 0x20 | 3, 0x28

# Source: SDM vol. 3, "Control registers" and "Extended feature enable register".
_CR0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1  # PG WP NE ET MP PE; neither TS nor EM
_CR4 = 1 << 18 | 1 << 10 | 1 << 9 | 1 << 5  # OSXSAVE OSXMMEXCPT OSFXSR PAE
_EFER = 1 << 10 | 1 << 8  # LMA LME


def write_tables(memory: GuestMemory, *, entries: Mapping[int, int], kernel_stack: int) -> None:
    """Write all tables; `entries` gives the handler's address per exception vector below 32."""
    _write_page_tables(memory)
    _write_gdt(memory)
    _write_idt(memory, entries)
    # RSP0 at offset 4 of the TSS. Source: "64-bit task state segment".
    memory.write_u64(_TSS + 4, kernel_stack)


def kernel_sregs(sregs: KvmSregs) -> KvmSregs:
    """Turn a fresh vCPU's `sregs` into those of ring 0 in long mode with these tables, and return them."""
    sregs.cs = _segment(_KERNEL_CS, code=True)
    sregs.ss = _segment(_KERNEL_SS, code=False)
    # With data segments of ring 3 throughout, IRETQ to ring 3 has nothing to take away from them.
    sregs.ds = sregs.es = sregs.fs = sregs.gs = _segment(_USER_SS, code=False)
    sregs.tr = KvmSegment(base=_TSS, limit=0x67, selector=_TSS_SELECTOR, type=0xB, present=1)
    sregs.gdt = KvmDtable(base=_GDT, limit=7 * 8 - 1)
    sregs.idt = KvmDtable(base=_IDT, limit=VECTORS * 16 - 1)
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = _CR0, _PML4, _CR4, _EFER
    return sregs


def user_sregs(sregs: KvmSregs) -> KvmSregs:
    """Turn `sregs` into those of ring 3, and return them."""
    sregs.cs = _segment(_USER_CS, code=True)
    sregs.ss = _segment(_USER_SS, code=False)
    return sregs


def _write_page_tables(memory: GuestMemory) -> None:
    """Map the first 2 MiB one to one, writable and open to ring 3, as one large page."""
    present_write_user, large = 0b111, 1 << 7
    memory.write_u64(_PML4, _PDPT | present_write_user)
    memory.write_u64(_PDPT, _PD | present_write_user)
    memory.write_u64(_PD, present_write_user | large)


def _write_gdt(memory: GuestMemory) -> None:
    """Write null, ring 0 code and data, ring 3 data and code, and the TSS. Source: SDM vol. 3, segment descriptors."""
    tss = 0x89 << 40 | (_TSS & 0xFFFFFF) << 16 | 0x67
    flat = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
    memory.write(_GDT, struct.pack("<7Q", *flat, tss, 0))


def _write_idt(memory: GuestMemory, entries: Mapping[int, int]) -> None:
    """Write an interrupt gate to ring 0 per exception. Source: SDM vol. 3, 64-bit IDT gate descriptors."""
    for vector, target in entries.items():
        # INT3 is ring 3's system call, so its gate alone is open to ring 3.
        kind = 0xEE if vector == BP_VECTOR else 0x8E
        gate = struct.pack("<HHBBHLL", target & 0xFFFF, _KERNEL_CS, 0, kind, target >> 16 & 0xFFFF, target >> 32, 0)
        memory.write(_IDT + 16 * vector, gate)


def _segment(selector: int, *, code: bool) -> KvmSegment:
    """Return the flat 64-bit segment that the GDT has under `selector`."""
    long_mode = int(code)
    return KvmSegment(
        limit=0xFFFFFFFF,
        selector=selector,
        type=0xB if code else 0x3,
        present=1,
        dpl=selector & 3,
        db=1 - long_mode,
        s=1,
        l=long_mode,
        g=1,
    )
