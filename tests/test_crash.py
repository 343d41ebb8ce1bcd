"""The crash campaigns, short, and the harness itself: what it is there to find, it finds."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from host_agent.commands import Boot, CreateVcpu, CreateVm, OpenSession, ResetVm, SubmitBatch
from host_agent.events import Enter, GuestEvent, Leave
from tests.crash import model
from tests.crash.__main__ import main
from tests.crash.audit import audit
from tests.crash.disk import SECTOR_BYTES, FaultyDisk, power_cut
from tests.crash.faults import FaultCampaign
from tests.crash.host import LIE
from tests.crash.moments import children_of
from tests.crash.record import Record
from tests.crash.twin import Twin
from tests.journal.rig import CONFIG, Scribe

pytestmark = pytest.mark.timeout(900)
_LAST = re.compile(r"kills: (\d+), acknowledged: (\d+), lost: 0, duplicated: 0, diverged: 0")


@pytest.mark.parametrize(
    ("arguments", "kills"),
    [
        pytest.param(["--kills", "30"], 30, id="killed"),
        pytest.param(["--kills", "5", "--faults"], 5, id="killed, and the disk fails"),
        pytest.param(["--kills", "5", "--full"], 5, id="killed, and the disk is full"),
    ],
)
def test_nothing_is_lost(arguments: list[str], kills: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Live guests, a controller and a host, killed again and again: status 0, and the figures say it."""
    status = main(arguments)
    said = capsys.readouterr().out
    print(said)
    figures = _LAST.fullmatch(said.splitlines()[-1])
    assert figures is not None, "something was lost"
    assert status == 0
    assert int(figures[1]) >= kills
    assert int(figures[2]) > kills, "there was load"
    if "--faults" in arguments:
        assert re.search(r"faults fired: .*", said)
        assert not re.search(r"faults fired: .* 0\b", said), "each kind has fired"
    if "--full" in arguments:
        assert re.search(r"STORAGE_FULL [1-9]", said), "somebody has heard of it"


def test_damage_is_found_or_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    """Flipped bits, cut ends, zeroed sectors and swapped pages of a dead host's directory: never silently wrong."""
    assert main(["--damages", "40"]) == 0
    said = capsys.readouterr().out
    print(said)
    assert re.fullmatch(r"damages: 40, found: [1-9]\d*, harmless: \d+, silent: 0", said.splitlines()[-1])


def test_a_host_that_does_not_sync_is_found_out(tmp_path: Path) -> None:
    """Its disk answers syncs and does nothing: at a power cut what was acknowledged is gone, and that is seen."""
    campaign = FaultCampaign(tmp_path, 1)
    campaign.host.environment[LIE] = "1"
    try:
        campaign.start()
        campaign.kill_host()
    finally:
        campaign.close()
    assert campaign.sectors_lost
    assert campaign.findings()


def test_a_campaign_that_is_told_to_end_leaves_nothing_running(tmp_path: Path) -> None:
    """Neither processes nor a mounted disk."""
    command = [sys.executable, "-m", "tests.crash", "--kills", "1000", "--full"]
    with subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE) as campaign:
        assert campaign.stderr is not None
        campaign.stderr.read(1)  # which it says after its first round
        started = children_of(campaign.pid)
        campaign.terminate()
        campaign.stderr.read()
    assert campaign.returncode == 128 + signal.SIGTERM
    assert len(started) >= 4
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.iterdir())


# -- the audit ---------------------------------------------------------------------------------------------------------


def _twin() -> Twin:
    """A VM of a counting client with two events, and one that was reset twice."""
    scribe = Scribe()
    scribe.do(Boot(config=CONFIG))
    for vm in ("a", "a-r"):
        scribe.do(CreateVm(vm_id=vm))
        scribe.do(CreateVcpu(vm=f"vms/{vm}", index=0))
    session = scribe.do(OpenSession(client_name="a", vcpus=("vms/a/vcpus/0",), explicit=True)).session
    events = (GuestEvent("vms/a/vcpus/0", 1, Enter()), GuestEvent("vms/a/vcpus/0", 2, Leave()))
    scribe.do(SubmitBatch(session=session.name, epoch=session.epoch, events=events))
    scribe.do(ResetVm(vm="vms/a-r"))
    scribe.do(ResetVm(vm="vms/a-r"))
    twin = Twin()
    twin.machine = scribe.machine
    return twin


def _told(*lines: dict[str, object]) -> Record:
    record = Record("a")
    for vm in ("a", "a-r"):
        record.take({"ask": vm, "op": "make", "kind": "vm", "name": vm})
    for line in lines:
        record.take(line)
    return record


def _reset(nr: int, *, done: bool) -> list[dict[str, object]]:
    asked: dict[str, object] = {"ask": f"r{nr}", "op": "bump", "kind": "vm", "name": "a-r"}
    return [asked, {"did": f"r{nr}", "answer": ""}] if done else [asked]


@pytest.mark.parametrize(
    ("lines", "how"),
    [
        pytest.param([*_reset(1, done=True), *_reset(2, done=True)], [], id="as it is"),
        pytest.param([*_reset(1, done=True), *_reset(2, done=False)], [], id="the last answer was lost"),
        pytest.param([*_reset(1, done=True)], ["duplicated"], id="reset twice, asked for once"),
        pytest.param(
            [*_reset(1, done=True), *_reset(2, done=True), *_reset(3, done=True)], ["lost"], id="a reset is missing"
        ),
        pytest.param(
            [
                {"did": "a", "answer": "vm-1"},
                {"sent": "vms/a/vcpus/0", "seq": 3},
                {"acked": "vms/a/vcpus/0", "seq": 3},
            ],
            ["duplicated", "lost"],
            id="another VM of that name, and an event is missing",
        ),
        pytest.param(
            [{"event": "decision", "exit": "e", "generation": 2}, {"event": "result", "exit": "e", "generation": 3}],
            ["lost"],
            id="a decision is missing",
        ),
        pytest.param(
            [
                {"ask": "f", "op": "make", "kind": "fault", "name": "a:1"},
                {"did": "f", "answer": "faults/f-1"},
            ],
            ["lost"],
            id="what was armed is not there",
        ),
        pytest.param(
            [
                {"did": "a", "answer": ""},
                {"ask": "d", "op": "drop", "kind": "vm", "name": "a"},
                {"did": "d", "answer": ""},
            ],
            ["lost"],
            id="what was deleted is there",
        ),
    ],
)
def test_the_audit_finds(lines: list[dict[str, object]], how: list[str]) -> None:
    """What was acknowledged and is missing, what happened too often, and nothing else."""
    assert [found for found, _ in audit(_told(*lines), _twin())] == how


def test_the_audit_knows_the_registers() -> None:
    """Which bytes are in XMM0 to XMM15 follows from the number of the last event alone."""
    vcpu = "vms/a/vcpus/0"
    assert model.registers(vcpu, 2) == bytes(256)
    written = {model.event(vcpu, seq).register_write.data for seq in (8, 14)}
    content = model.registers(vcpu, 14)
    assert {content[16:32], content[32:48]} == written
    assert content[:16] == content[48:64] == bytes(16)
    lap = 6 * model.REGISTERS
    assert model.registers(vcpu, 8 + lap)[16:32] == model.event(vcpu, 8 + lap).register_write.data


@pytest.mark.parametrize("first", range(1, 13))
def test_a_batch_has_an_odd_number_of_doors(first: int) -> None:
    """So whoever applies it twice ends on the wrong side of the guest's door."""
    for at_least in range(1, 14):
        kinds = [event.WhichOneof("kind") for event in model.batch("v", first, at_least)]
        assert len(kinds) >= at_least
        assert sum(kind in ("enter", "leave") for kind in kinds) % 2 == 1


# -- the disk ----------------------------------------------------------------------------------------------------------


def test_a_power_cut_takes_only_what_was_not_synced(tmp_path: Path) -> None:
    """Sector by sector an old content or a new one; what was synced stays, and not everything else does."""
    disk = FaultyDisk("power", lambda _kind: None)
    path = tmp_path / "file"
    flags = [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE, 0]
    outcomes = set()
    for seed in range(30):
        path.unlink(missing_ok=True)
        file = disk.xOpen(str(path), flags)
        file.xWrite(b"a" * 4 * SECTOR_BYTES, 0)
        file.xSync(apsw.SQLITE_SYNC_NORMAL)
        file.xWrite(b"b" * 2 * SECTOR_BYTES, SECTOR_BYTES)
        file.xWrite(b"c" * 2 * SECTOR_BYTES, 2 * SECTOR_BYTES)
        file.xWrite(b"d" * SECTOR_BYTES, 4 * SECTOR_BYTES)
        file.xClose()
        power_cut(tmp_path, random.Random(seed))
        left = path.read_bytes()
        sectors = [left[at : at + SECTOR_BYTES] for at in range(0, len(left), SECTOR_BYTES)]
        assert all(len(set(sector)) == 1 for sector in sectors), "no sector is torn"
        text = b"".join(sector[:1] for sector in sectors).decode()
        assert re.fullmatch(r"a[ab][abc][ac][d\0]?", text), text
        outcomes.add(text)
    assert len(outcomes) > 5
    disk.unregister()
