"""The parts of the KVM guest that need no KVM: decoding, CPUID, exits, memory, the program and its image."""

from __future__ import annotations

import ctypes
import mmap

import pytest

from guest_agent.kvm import GuestProgram, KvmError, TileOp
from guest_agent.kvm.api import (
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR,
    KVM_MSR_EXIT_REASON_FILTER,
)
from guest_agent.kvm.cpuid import hide_tiles, supported_xcr0
from guest_agent.kvm.decode import TileInstruction, decode_tile
from guest_agent.kvm.exit import MsrRead, MsrWrite, read_exit
from guest_agent.kvm.memory import GuestAddressError, GuestMemory
from guest_agent.kvm.run_page import KvmRun
from guest_agent.kvm.structs import KvmCpuid, KvmCpuidEntry, KvmSregs, KvmVcpuEvents
from guest_agent.kvm.tile import TileShape, gather_tile, read_shapes, scatter_tile
from tools import build_guest

# Register n holds 0x1000 * (n + 1), in encoding order: rax rcx rdx rbx rsp rbp rsi rdi r8 ...
GPRS = [0x1000 * (n + 1) for n in range(16)]
RIP = 0x400000


def decode(code: str) -> TileInstruction | None:
    """Decode hex at RIP."""
    return decode_tile(bytes.fromhex(code), rip=RIP, gprs=GPRS)


# ---- decoding ----


# The bytes are GNU as 2.40's for the instruction in the id.
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(
            "c4e278490508000000", TileInstruction(TileOp.LDTILECFG, 0, RIP + 9 + 8, 0, 9), id="ldtilecfg [rip+8]"
        ),
        pytest.param("c4c2794901", TileInstruction(TileOp.STTILECFG, 0, 0xA000, 0, 5), id="sttilecfg [r9]"),
        pytest.param("c4e27849c0", TileInstruction(TileOp.TILERELEASE, 0, None, 0, 5), id="tilerelease"),
        pytest.param("c4e27b49e8", TileInstruction(TileOp.TILEZERO, 5, None, 0, 5), id="tilezero tmm5"),
        pytest.param(
            "c4e27b4b9c0e00040000",
            TileInstruction(TileOp.TILELOADD, 3, 0x7400, 0x2000, 10),
            id="tileloadd tmm3, [rsi+rcx+0x400]",
        ),
        pytest.param(
            "c482794b4c48c0",
            TileInstruction(TileOp.TILELOADD, 1, 0x9000 - 64, 0x14000, 7),
            id="tileloaddt1 tmm1, [r8+r9*2-64]",
        ),
        pytest.param(
            "c4e27a4b3c0f", TileInstruction(TileOp.TILESTORED, 7, 0x8000, 0x2000, 6), id="tilestored [rdi+rcx], tmm7"
        ),
        pytest.param(
            "c4e27b4b042500000200",
            TileInstruction(TileOp.TILELOADD, 0, 0x20000, 0, 10),
            id="tileloadd tmm0, [0x20000]: no base, no index, stride 0",
        ),
        pytest.param(
            "c4a27b4b0426", TileInstruction(TileOp.TILELOADD, 0, 0x7000, 0xD000, 6), id="tileloadd tmm0, [rsi+r12]"
        ),
        pytest.param("c4e27849440810", TileInstruction(TileOp.LDTILECFG, 0, 0x3010, 0, 7), id="ldtilecfg [rax+rcx+16]"),
    ],
)
def test_tile_instruction_is_decoded(code: str, expected: TileInstruction) -> None:
    """Operation, tile, address, stride and length come out of the bytes and the registers."""
    assert decode(code) == expected


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("", id="nothing"),
        pytest.param("0f0b000000", id="ud2"),
        pytest.param("c5f877c3c3", id="vzeroupper"),
        pytest.param("c4e2735ec2", id="tdpbssd tmm0, tmm2, tmm1"),
        pytest.param("c4e2f849c0", id="tilerelease with W1"),
        pytest.param("c4e27c49c0", id="tilerelease with 256 bits"),
        pytest.param("c4e17849c0", id="another opcode map"),
        pytest.param("c4e27849c1", id="register form, not tilerelease"),
        pytest.param("c4627b49c0", id="tilezero tmm8"),
        pytest.param("c4627b4b040e", id="tileloadd tmm8"),
        pytest.param("c4e27b4b06", id="tileloadd without SIB"),
        pytest.param("c4e2784909", id="ldtilecfg with reg 1"),
        pytest.param("c4e27b4b04", id="cut before SIB"),
        pytest.param("c4e27b4b9c0e0004", id="cut in the displacement"),
    ],
)
def test_everything_else_is_no_tile_instruction(code: str) -> None:
    """Other instructions, impossible forms and cut bytes are None."""
    assert decode(code) is None


def test_addresses_wrap_at_64_bits() -> None:
    """A negative stride is a number near 2**64, and row addresses come around."""
    gprs = [0] * 16
    gprs[6], gprs[1] = 0x1000, (1 << 64) - 64
    instruction = decode_tile(bytes.fromhex("c4e27b4b040e"), rip=RIP, gprs=gprs)
    assert instruction is not None
    with GuestMemory(1 << 16) as memory:
        memory.write(0x1000 - 15 * 64, bytes(range(16)) * 64)
        assert gather_tile(memory, instruction, TileShape(16, 1)) == (b"\0" * 64) * 16
        assert gather_tile(memory, instruction, TileShape(16, 2)) == (b"\0\1".ljust(64, b"\0")) * 16


# ---- tiles in memory ----

LOAD = TileInstruction(TileOp.TILELOADD, tile=0, address=0x100, stride=0x20, length=6)


def test_shapes_come_from_the_configuration() -> None:
    """Rows and bytes per row are where LDTILECFG's page puts them; palette 0 configures nothing."""
    config = bytearray(64)
    config[0], config[16:18], config[48] = 1, (48).to_bytes(2, "little"), 3
    assert read_shapes(bytes(config))[:2] == (TileShape(3, 48), TileShape(0, 0))
    config[0] = 0
    assert set(read_shapes(bytes(config))) == {TileShape(0, 0)}


def test_small_tile_is_zero_beyond_its_shape() -> None:
    """TILELOADD reads the configured rows alone, and zeroes the rest of the register."""
    with GuestMemory(0x1000) as memory:
        memory.write(0x100, b"\xff" * 0x100)
        content = gather_tile(memory, LOAD, TileShape(2, 4))
    assert content == (b"\xff" * 4).ljust(64, b"\0") * 2 + bytes(14 * 64)


def test_small_tile_is_stored_row_by_row() -> None:
    """TILESTORED writes the configured bytes of each row, and leaves what lies between."""
    with GuestMemory(0x1000) as memory:
        memory.write(0x100, b"." * 0x40)
        scatter_tile(memory, LOAD, TileShape(2, 2), b"abcd".ljust(64) + b"efgh".ljust(64) + bytes(14 * 64))
        assert memory.read(0x100, 0x40) == b"ab".ljust(32, b".") + b"ef".ljust(32, b".")


def test_memory_outside_is_refused_and_unchanged() -> None:
    """Reading or writing across the end names the range and changes nothing."""
    with GuestMemory(0x1000) as memory:
        with pytest.raises(GuestAddressError, match="0xffe"):
            memory.write(0xFFE, b"abc")
        with pytest.raises(GuestAddressError):
            memory.read(-1, 1)
        assert memory.read(0xFFE, 2) == b"\0\0"


# ---- CPUID ----


def cpuid_of(*entries: tuple[int, int, int, int, int, int]) -> KvmCpuid:
    """Return the entries (function, index, eax, ebx, ecx, edx) as KVM gives them."""
    cpuid = KvmCpuid(nent=len(entries))
    for entry, (function, index, eax, ebx, ecx, edx) in zip(cpuid.entries, entries, strict=False):
        entry.function, entry.index, entry.flags = function, index, 1
        entry.eax, entry.ebx, entry.ecx, entry.edx = eax, ebx, ecx, edx
    return cpuid


def registers(entry: KvmCpuidEntry) -> tuple[int, int, int, int]:
    """Return eax to edx."""
    return entry.eax, entry.ebx, entry.ecx, entry.edx


def test_tiles_are_hidden_from_a_processor_that_has_them() -> None:
    """Feature bits, XCR0 bits, XFD, the tiles' leaves and their part of the XSAVE area all go; the rest stays."""
    every = 0xFFFFFFFF
    cpuid = cpuid_of(
        (0x7, 0, 1, every, every, every),
        (0x7, 1, every, 0, 0, every),
        (0xD, 0, 0x602E7, 2696, 11008, 0),
        (0xD, 1, 0x1F, 2568, 0x1900, 0),
        (0xD, 2, 256, 576, 0, 0),
        (0xD, 9, 8, 2688, 0, 0),
        (0xD, 11, 16, 0, 1, 0),
        (0xD, 17, 64, 2752, 2, 0),
        (0xD, 18, 8192, 2816, 6, 0),
        (0x1D, 1, 0x04002000, 0x00080040, 16, 0),
        (0x1E, 0, 0, 0x4010, 0, 0),
    )
    hide_tiles(cpuid)
    after = [registers(entry) for entry in cpuid.entries[: cpuid.nent]]
    assert after == [
        (1, every, every, every & ~(1 << 22 | 1 << 24 | 1 << 25)),
        (every & ~(1 << 21), 0, 0, every & ~(1 << 8)),
        (0x2E7, 2696, 2696, 0),
        (0xF, 2568, 0x1900, 0),
        (256, 576, 0, 0),
        (8, 2688, 0, 0),
        (16, 0, 1, 0),
        (0, 0, 0, 0),
        (0, 0, 0, 0),
        (0, 0, 0, 0),
        (0, 0, 0, 0),
    ]
    assert supported_xcr0(cpuid) == 0x2E7


def test_processor_without_xsave_offers_x87_alone() -> None:
    """Without leaf 0xd XCR0 has nothing but bit 0."""
    assert supported_xcr0(cpuid_of((0x1, 0, 0, 0, 0, 0))) == 1


# ---- exits and structures ----


@pytest.fixture
def page() -> mmap.mmap:
    """An empty page in place of the one shared with KVM."""
    return mmap.mmap(-1, mmap.PAGESIZE)


def test_msr_exits_are_read(page: mmap.mmap) -> None:
    """A filtered WRMSR has index and value, a filtered RDMSR the index."""
    run = KvmRun(exit_reason=KVM_EXIT_X86_WRMSR)
    run.exit.msr.reason, run.exit.msr.index, run.exit.msr.data = KVM_MSR_EXIT_REASON_FILTER, 0x1C4, 1 << 18
    assert read_exit(run, page) == MsrWrite(msr=0x1C4, value=1 << 18)
    run.exit_reason = KVM_EXIT_X86_RDMSR
    assert read_exit(run, page) == MsrRead(msr=0x1C4)


def test_msr_exit_for_another_reason_is_an_error(page: mmap.mmap) -> None:
    """An MSR exit nobody asked for is not taken for a trapped XFD."""
    run = KvmRun(exit_reason=KVM_EXIT_X86_WRMSR)
    run.exit.msr.reason = 2
    with pytest.raises(KvmError, match=r"expected reason FILTER \(4\), got 2"):
        read_exit(run, page)


@pytest.mark.parametrize(
    ("reason", "name", "suberror"),
    [
        (KVM_EXIT_INTERNAL_ERROR, "KVM_EXIT_INTERNAL_ERROR", 1),
        (KVM_EXIT_FAIL_ENTRY, "KVM_EXIT_FAIL_ENTRY", 0x80000021),
        (8, "KVM_EXIT_SHUTDOWN", None),
        (6, "KVM_EXIT_MMIO", None),
        (99, "KVM_EXIT_99", None),
    ],
)
def test_fatal_exit_tells_reason_suberror_and_rip(
    reason: int, name: str, suberror: int | None, page: mmap.mmap
) -> None:
    """An exit that cannot be gone on from carries KVM's name, its suberror and the guest's RIP."""
    run = KvmRun(exit_reason=reason)
    run.regs.rip = 0x10123
    if reason == KVM_EXIT_FAIL_ENTRY:
        run.exit.fail_entry.hardware_entry_failure_reason = suberror or 0
    else:
        run.exit.internal.suberror = suberror or 0
    with pytest.raises(KvmError, match="0x10123") as caught:
        read_exit(run, page)
    error = caught.value
    assert (error.exit_reason, error.suberror, error.rip) == (name, suberror, 0x10123)


def test_structures_have_the_kernel_s_sizes_and_places() -> None:
    """Sizes and offsets as the C compiler gives them for the kernel's headers on x86-64."""
    assert ctypes.sizeof(KvmSregs) == 312
    assert ctypes.sizeof(KvmVcpuEvents) == 64
    assert ctypes.sizeof(KvmCpuidEntry) == 40
    run = KvmRun()
    start = ctypes.addressof(run)
    assert ctypes.addressof(run.exit) - start == 32
    assert ctypes.addressof(run.regs) - start == 304


# ---- the program ----


def test_shipped_image_is_what_its_source_builds() -> None:
    """Assembling guest.S gives guest.bin, byte for byte."""
    missing = build_guest.missing_tools()
    if missing:
        pytest.skip(f"the guest cannot be reassembled: {missing}")
    try:
        built = build_guest.build()
    except build_guest.BuildError as error:
        if "no such instruction" in str(error):
            pytest.skip("this assembler does not know the tile instructions")
        raise
    assert built == GuestProgram().image, "stale: run python -m tools.build_guest"


def test_header_points_into_the_image() -> None:
    """Every entry the VMM takes from the header lies inside the image."""
    program = GuestProgram()
    header = program.header
    entries = (header.start, header.ud_entry, header.nm_entry, header.gp_entry, header.call_entry, header.params)
    assert all(0x10000 < entry < 0x10000 + len(program.image) for entry in entries)
    assert program.image[program.fault_stub(13) - 0x10000 :].startswith(b"\x6a\x0d")
    assert header.stored_size == 8192


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("xcr0", -1),
        ("xcr0", 1 << 64),
        ("xcr0_first", 1 << 64),
        ("seed", 1 << 64),
        ("rounds", 0),
        ("rounds", 1 << 32),
        ("image", b"ELF"),
        ("image", b"FPGUEST1" + bytes(1 << 20)),
    ],
)
def test_bad_parameter_is_named(field: str, value: int | bytes) -> None:
    """A parameter out of range is refused by its name, with what was expected."""
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        GuestProgram(**{field: value})  # type: ignore[arg-type]
