"""Scripts: what may stand in one, what is said about what may not, and how one plays out."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest_agent.event import GuestEvent, Hlt, Rdmsr, RegisterRead, RegisterWrite, Tile, TileOp, Wrmsr, Xsetbv
from guest_agent.kvm.program import GrowthOrder
from guest_agent.outcome import Directive, DirectiveKind, Done, Gone, Growth, Injected, InstructionOutcome
from guest_agent.report import GuestMark, Mark, Outcome
from guest_agent.run import shipped_script
from guest_agent.script import RETRIES_MAX, ScriptedGuest, ScriptReport
from guest_agent.script_parser import ScriptError, load_script, parse_script
from guest_agent.script_syntax import TileConfig, pattern

XFD, XFD_ERR = 0x1C4, 0x1C5
XTILE_DATA = 1 << 18
UD, NM, GP = 6, 7, 13


class Processor:
    """A vCPU with AMX and XFD, small enough to read at a glance; `refuse` names the growth that gets #GP."""

    def __init__(self, *, refuse: str = "") -> None:
        self.refuse = refuse
        self.msrs = {XFD: 0, XFD_ERR: 0}
        self.xcr0 = 1
        self.config = bytes(64)
        self.tiles = [bytes(1024)] * 8
        self.registers: dict[int, bytearray] = {}
        self.events: list[GuestEvent] = []

    def submit(self, event: GuestEvent) -> InstructionOutcome:
        """Execute one event."""
        self.events.append(event)
        match event:
            case Xsetbv(value=value):
                if self.refuse == "xcr0" and value & XTILE_DATA:
                    return Injected(GP, 0)
                self.xcr0 = value
            case Wrmsr(msr=msr, value=value):
                if self.refuse == "xfd" and msr == XFD and not value:
                    return Injected(GP, 0)
                self.msrs[msr] = value
            case Rdmsr(msr=msr):
                return Done(value=self.msrs[msr])
            case RegisterWrite(feature=feature, offset=offset, data=content):
                self.registers.setdefault(feature, bytearray(4096))[offset : offset + len(content)] = content
            case RegisterRead(feature=feature, offset=offset, length=length):
                return Done(data=bytes(self.registers.get(feature, bytearray(4096))[offset : offset + length]))
            case Tile():
                return self._tile(event)
            case _:
                pass
        return Done()

    def _tile(self, tile: Tile) -> InstructionOutcome:
        if not self.xcr0 & XTILE_DATA:
            return Injected(UD)
        if tile.op in (TileOp.TILELOADD, TileOp.TILESTORED, TileOp.TILEZERO) and self.msrs[XFD]:
            self.msrs[XFD_ERR] = XTILE_DATA
            return Injected(NM, xfd_err=XTILE_DATA)
        match tile.op:
            case TileOp.LDTILECFG:
                self.config, self.tiles = tile.memory, [bytes(1024)] * 8
            case TileOp.TILELOADD:
                self.tiles[tile.tile] = tile.memory
            case TileOp.TILESTORED:
                return Done(data=self.tiles[tile.tile])
            case TileOp.TILEZERO:
                self.tiles[tile.tile] = bytes(1024)
            case TileOp.STTILECFG:
                return Done(data=self.config)
            case TileOp.TILERELEASE:
                self.config, self.tiles = bytes(64), [bytes(1024)] * 8
        return Done()


def run(text: str, processor: Processor | None = None) -> ScriptReport:
    """Play a script against the small processor."""
    return ScriptedGuest(processor or Processor(), parse_script(text, name="test.txt")).run()


# ---- the shipped scripts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "refuse", "outcome", "said"),
    [
        pytest.param(GrowthOrder.XFD_ARMED_FIRST, "", Outcome.VERIFIED, "BxAxNGvV", id="the XFD write grows"),
        pytest.param(GrowthOrder.XFD_ARMED_FIRST, "xfd", Outcome.REFUSED, "BxAxNRvW", id="it is refused with #GP"),
        pytest.param(GrowthOrder.XFD_ARMED_FIRST, "xcr0", Outcome.REFUSED, "BxARW", id="XSETBV is refused, XFD armed"),
        pytest.param(GrowthOrder.XCR0_FIRST_WITH_XFD_0, "", Outcome.VERIFIED, "BxxGvV", id="XSETBV grows"),
        pytest.param(GrowthOrder.XCR0_FIRST_WITH_XFD_0, "xcr0", Outcome.REFUSED, "BxRW", id="XSETBV is refused"),
    ],
)
def test_a_shipped_script_says_what_the_real_guest_says(
    order: GrowthOrder, refuse: str, outcome: Outcome, said: str
) -> None:
    """The scripted twins end as the real program does, and say the same letters on the way."""
    processor = Processor(refuse=refuse)
    report = ScriptedGuest(processor, load_script(shipped_script(order))).run()
    assert (report.outcome, report.said) == (outcome, said)
    assert isinstance(processor.events[-1], Hlt)


def test_the_armed_guest_retries_the_instruction_that_faulted() -> None:
    """#NM, XFD_ERR read and cleared, XFD written, and the same TILELOADD again."""
    processor = Processor()
    ScriptedGuest(processor, load_script(shipped_script(GrowthOrder.XFD_ARMED_FIRST))).run()
    at = next(i for i, event in enumerate(processor.events) if isinstance(event, Tile) and event.op is TileOp.TILELOADD)
    load, read, clear, write, again = processor.events[at : at + 5]
    assert (read, clear, write) == (Rdmsr(XFD_ERR), Wrmsr(XFD_ERR, 0), Wrmsr(XFD, 0))
    assert again == load


# ---- playing ---------------------------------------------------------------------------------------------------------


def test_marks_are_heard_as_they_are_said() -> None:
    """`say` reports at once, with a value, with none, or with what RDMSR read last."""
    heard: list[GuestMark] = []
    script = parse_script("say booted 2a\nwrmsr XFD 40000\nrdmsr XFD\nsay XFD_ARMED read\nsay spinning", name="t")
    ScriptedGuest(Processor(), script, heard.append).run()
    assert heard == [GuestMark(Mark.BOOTED, 0x2A), GuestMark(Mark.XFD_ARMED, 0x40000), GuestMark(Mark.SPINNING, 0)]


@pytest.mark.parametrize(
    ("script", "outcome", "reason"),
    [
        pytest.param("xsetbv 0 7\nhlt", Outcome.HALTED, "", id="a script that says nothing has halted"),
        pytest.param("hlt\nxsetbv 0 7 else x\nx:", Outcome.HALTED, "", id="nothing happens behind hlt"),
        pytest.param("wrmsr XFD 40000\nrdmsr XFD = 40000", Outcome.HALTED, "", id="a read that is as expected"),
        pytest.param(
            "rdmsr XFD = 1", Outcome.MISMATCH, "test.txt:1: rdmsr XFD = 1: expected 1, got 0", id="a read that is not"
        ),
        pytest.param(
            "write 2 0 aabb\nread 2 0 2 = aacc",
            Outcome.MISMATCH,
            "test.txt:2: read 2 0 2 = aacc: the register: byte 1 of 2: expected cc, got bb",
            id="the first byte that differs is named",
        ),
        pytest.param("write 2 8 pattern=3:64\nread 2 8 64 = pattern=3", Outcome.HALTED, "", id="a pattern comes back"),
        pytest.param("read 2 0 16 = zero", Outcome.HALTED, "", id="zeros of the length that is read"),
        pytest.param("tile tilezero 0\nexpect ud", Outcome.HALTED, "", id="an exception that was expected"),
        pytest.param(
            "xsetbv 0 7\nexpect gp", Outcome.MISMATCH, "test.txt:1: xsetbv 0 7: expected gp, got that it happened",
            id="an exception that did not come",
        ),
        pytest.param(
            "tile tilezero 0\nexpect nm", Outcome.MISMATCH, "test.txt:1: tile tilezero 0: expected nm, got #UD",
            id="another exception",
        ),
        pytest.param(
            "tile tilezero 0\nexpect done", Outcome.MISMATCH, "test.txt:1: tile tilezero 0: expected done, got #UD",
            id="an exception where it was to happen",
        ),
        pytest.param(
            "xsetbv 0 7\nexpect grew", Outcome.MISMATCH,
            "test.txt:1: xsetbv 0 7: expected grew, got the container as it was", id="no growth",
        ),
        pytest.param(
            "say BOOTED\ntile tilezero 0", Outcome.FAULTED,
            "test.txt:2: tile tilezero 0: #UD, for which there is no handler", id="an exception without a handler",
        ),
        pytest.param("on ud: skip\ntile tilezero 0\nsay VERIFIED", Outcome.VERIFIED, "", id="skip goes on behind it"),
        pytest.param("on ud: say refused, hlt\ntile tilezero 0\nsay VERIFIED", Outcome.REFUSED, "", id="one line"),
        pytest.param(
            "on ud: goto out\ntile tilezero 0\nsay MISMATCH\nout:\nsay VERIFIED", Outcome.VERIFIED, "",
            id="a handler may go elsewhere",
        ),
        pytest.param(
            "on ud: tile tilezero 1\ntile tilezero 0", Outcome.FAULTED,
            "test.txt:1: tile tilezero 1: #UD, for which there is no handler", id="a handler does not handle itself",
        ),
        pytest.param(
            "on ud: retry\ntile tilezero 0", Outcome.FAULTED,
            f"test.txt:2: tile tilezero 0: executed {RETRIES_MAX} times, and its handler mends nothing",
            id="a handler that mends nothing does not run for ever",
        ),
        pytest.param(
            "xsetbv 0 602e7\ntile ldtilecfg 2x3x5\ntile tileloadd 1 pattern=9\nverify tile 1\ntile sttilecfg",
            Outcome.HALTED, "", id="a small tile is verified as a whole register",
        ),
    ],
)  # fmt: skip
def test_how_a_script_ends(script: str, outcome: Outcome, reason: str) -> None:
    """A run ends as its last steps say; what went wrong is told with file, line and step."""
    report = run(script)
    assert (report.outcome, report.reason) == (outcome, reason)


def test_a_tile_that_reads_back_otherwise_is_a_mismatch() -> None:
    """A flipped byte in a tile is found, and where."""

    class Flips(Processor):
        """Gives back one wrong byte."""

        def submit(self, event: GuestEvent) -> InstructionOutcome:
            outcome = super().submit(event)
            if isinstance(event, Tile) and event.op is TileOp.TILESTORED and isinstance(outcome, Done):
                return Done(data=outcome.data[:70] + bytes([outcome.data[70] ^ 1]) + outcome.data[71:])
            return outcome

    report = run("xsetbv 0 602e7\ntile ldtilecfg 8x16x64\ntile tileloadd 3 pattern=5\nverify tile 3", Flips())
    assert report.outcome is Outcome.MISMATCH
    assert report.reason.startswith("test.txt:4: verify tile 3: tile 3: byte 70 of 1024: expected ")
    assert report.said == "X"
    assert report.line == 4


def test_growth_can_be_expected() -> None:
    """`expect grew` is satisfied by an outcome that says the container was replaced."""

    class Grows(Processor):
        """Grows for every XSETBV."""

        def submit(self, event: GuestEvent) -> InstructionOutcome:
            super().submit(event)
            return Done(reallocated=Growth(2560, 10752, 0x602E7))

    assert run("xsetbv 0 602e7\nexpect grew", Grows()).outcome is Outcome.HALTED


def test_a_vcpu_that_is_gone_stops_the_script() -> None:
    """Killed by a decision: the run is STOPPED, with the host's reason, and sends nothing more."""

    class Dies(Processor):
        """Is killed at its first XSETBV."""

        def submit(self, event: GuestEvent) -> InstructionOutcome:
            super().submit(event)
            return Gone(Directive(1, "vms/a/vcpus/0", DirectiveKind.STOP, "killed by ops"))

    processor = Dies()
    report = run("xsetbv 0 7\nhlt", processor)
    assert (report.outcome, report.reason, report.events) == (Outcome.STOPPED, "STOP: killed by ops", 1)
    assert len(processor.events) == 1


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("frobnicate", "t:1: expected one of enter, goto, hlt, init,"),
        ("\n# two\nxsetbv 0", "t:3: expected `xsetbv INDEX VALUE [cpl=N]`, got 'xsetbv 0'"),
        ("xsetbv 0 7 cpl=x", "t:1: expected a decimal number, 0 to 4294967295, got 'x'"),
        ("xsetbv 0 7 3", "t:1: expected `cpl=N`, got '3'"),
        ("wrmsr XFD 4000g", "t:1: expected a hexadecimal number of at most 64 bits, got '4000g'"),
        ("wrmsr PAT 0", "t:1: expected XFD, XFD_ERR or the number of an MSR (0x1c4), got 'PAT'"),
        ("rdmsr XFD 40000", "t:1: expected `=` before what must be read, got '40000'"),
        ("write 2 0 abc", "t:1: expected bytes in hexadecimal, pattern=SEED:LENGTH or zero:LENGTH, got 'abc'"),
        ("write 2 0 pattern=7", "t:1: expected `pattern=7:LENGTH`, got 'pattern=7'"),
        ("read 2 0 16 = aabb", "t:1: expected 16 bytes, got '2 bytes'"),
        ("tile tdpbssd 0 1 2", "t:1: expected one of ldtilecfg, sttilecfg,"),
        ("tile tileloadd 8 pattern=1", "t:1: expected a decimal number, 0 to 7, got '8'"),
        ("tile tileloadd 0", "t:1: expected `tile tileloadd N pattern=SEED`, got 'tileloadd 0'"),
        ("tile ldtilecfg 8x17x64", "t:1: expected 1 to 8 tiles of 1 to 16 rows of 1 to 64 bytes, got '8x17x64'"),
        ("say HELLO", "t:1: expected one of BOOTED, XCR0_WRITTEN,"),
        ("expect gp", "t:1: expected `expect` below the instruction it is about"),
        ("say BOOTED\nexpect gp", "t:2: expected `expect` below the instruction it is about"),
        ("xsetbv 0 7\nexpect pf", "t:2: expected one of ud, nm, gp, done, grew, got 'pf'"),
        ("goto nowhere", "t:1: expected a label of this script, got 'nowhere'"),
        ("xsetbv 0 7 else nowhere", "t:1: expected a label of this script, got 'nowhere'"),
        ("say BOOTED else x\nx:", "t:1: expected `else` behind an instruction only, got 'say BOOTED else x'"),
        ("x:\nx:", "t:2: expected each label once, got 'x'"),
        ("Xx:", "t:1: expected a label of lower-case letters, digits and _, got 'Xx'"),
        ("retry", "t:1: expected `retry` and `skip` in a handler only, got 'retry'"),
        ("  xsetbv 0 7", "t:1: expected an indented line only below `on nm:` or the like, got 'xsetbv 0 7'"),
        ("on pf: retry", "t:1: expected `on nm:`, `on gp:` or `on ud:`, got 'on pf: retry'"),
        ("on nm: retry\non nm: skip", "t:2: expected one handler for each exception, got 'on nm: skip'"),
    ],
)
def test_a_line_that_is_wrong_is_named(script: str, message: str) -> None:
    """File, line, what was expected and what stands there."""
    with pytest.raises(ScriptError) as caught:
        parse_script(script, name="t")
    assert str(caught.value).startswith(message)


def test_a_script_is_read_from_a_file(tmp_path: Path) -> None:
    """Messages carry the file's name without its folder."""
    path = tmp_path / "mine.txt"
    path.write_text("xsetbv 0 7\nhlt now\n")
    with pytest.raises(ScriptError, match=r"^mine.txt:2: expected `hlt`, got 'hlt now'$"):
        load_script(path)


def test_patterns_are_the_real_guests() -> None:
    """The generator is the one of the real program, so that traces can be compared."""
    word = (6364136223846793005 + 1442695040888963407) % 2**64
    assert pattern(1, 8) == word.to_bytes(8, "little")
    assert pattern(1, 5) == pattern(1, 8)[:5]


def test_a_tile_configuration_has_the_layout_of_ldtilecfg() -> None:
    """Palette in byte 0, bytes per row from 16 on, rows from 48 on; the other tiles stay unconfigured."""
    content = TileConfig(tiles=2, rows=3, row_bytes=5).to_bytes()
    assert content[0] == 1
    assert content[16:22] == bytes([5, 0, 5, 0, 0, 0])
    assert content[48:51] == bytes([3, 3, 0])
    assert TileConfig(2, 3, 5).tile_bytes(bytes(range(15)))[64:70] == bytes([5, 6, 7, 8, 9, 0])
