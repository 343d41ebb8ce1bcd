"""A directory whose host is dead, damaged at random places: found, or harmless, and never silently wrong.

found      the host does not start on it, and says why
harmless   recovery leads to the very same machine, or leaves out what was acknowledged to nobody
silent     recovery leads to another machine without a word: what must never be
"""

from __future__ import annotations

import logging
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from host_agent.journal.errors import JournalError
from host_agent.journal.recovery import Recovered, recover
from host_agent.journal.store import DATABASE, Store
from host_agent.state import HostConfig
from tests.crash.campaign import Campaign

_PAGE: Final = 4096
#: How much of the end of the log counts as its tail, in bytes.
_TAIL: Final = 16 * _PAGE


@dataclass(frozen=True)
class Damage:
    """What was done to which file."""

    how: str
    file: str
    offset: int

    def __str__(self) -> str:
        return f"{self.how} of {self.file} at {self.offset}"


def damage_campaign(folder: Path, seed: int, count: int) -> int:
    """Make a history under load, kill its host, and damage copies of what is left; returns the status."""
    log = logging.getLogger("host_agent")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what is damaged is said a thousand times
    try:
        return _campaign(folder, seed, count)
    finally:
        log.setLevel(level)


def _campaign(folder: Path, seed: int, count: int) -> int:
    chance = random.Random(seed)
    directory = _history(folder, seed)
    good = _good(directory, folder / "copy")
    found: Counter[tuple[str, str]] = Counter()
    silent = []
    begin_s = time.monotonic()
    for _ in range(count):
        damage, outcome = _damaged(directory, folder / "copy", chance)
        kind = "found" if outcome.startswith("error: ") else "harmless" if outcome in good else "silent"
        found[kind, damage.file] += 1
        if kind == "silent":
            silent.append(damage)
    for file in sorted({file for _, file in found}):
        print(f"{found['found', file]:>6} found, {found['harmless', file]:>6} harmless: {file}")
    for damage in silent:
        print(f"silent: {damage}")
    total: Counter[str] = Counter()
    for (kind, _), nr in found.items():
        total[kind] += nr
    print(f"{time.monotonic() - begin_s:.0f} s")
    print(f"damages: {count}, found: {total['found']}, harmless: {total['harmless']}, silent: {total['silent']}")
    return 1 if silent or not total["found"] else 0


def _damaged(directory: Path, copy: Path, chance: random.Random) -> tuple[Damage, str]:
    shutil.copytree(directory, copy)
    damage = _damage(copy, chance)
    outcome = _outcome(copy)
    shutil.rmtree(copy)
    return damage, outcome


def _good(directory: Path, copy: Path) -> set[str]:
    """What recovery may lead to: a commit that was on its way when the host was killed was acknowledged to nobody."""
    shutil.copytree(directory, copy)
    with Store(copy, write=False) as store:
        ends = range(store.acknowledged[0], store.last() + 1)
        good = {_text(recover(store, HostConfig(), through=n)) for n in ends}
    shutil.rmtree(copy)
    return good


def _history(folder: Path, seed: int) -> Path:
    """A directory with snapshots, a checkpointed file and a log, as a killed host leaves it."""
    campaign = Campaign(folder, seed)
    try:
        campaign.start()
        while len(list(campaign.host.state_dir.glob("snapshot-*"))) < 2:
            campaign.check_alive()
            time.sleep(0.05)
        campaign.host.kill()
        Store(campaign.host.state_dir, write=True).close_in_peace()  # brings the log into the file
        campaign.host.start()
        before = campaign.acknowledged
        while campaign.acknowledged < before + 500:
            campaign.check_alive()
            time.sleep(0.05)
        campaign.host.kill()
    finally:
        campaign.close()
    (campaign.host.state_dir / f"{DATABASE}-shm").unlink(missing_ok=True)  # a process's memory
    return campaign.host.state_dir


def _damage(directory: Path, chance: random.Random) -> Damage:
    """Do one thing to one file."""
    files = sorted(path for path in directory.iterdir() if path.name != "lock" and path.stat().st_size)
    path = chance.choice(files)
    wal = directory / f"{DATABASE}-wal"
    if chance.random() < 0.4 and wal in files:
        path = wal
    size = path.stat().st_size
    how = chance.choice(
        ("flipped bit", "flipped bit", "flipped bit in the tail", "cut end", "zeroed sector", "swapped pages")
    )
    offset = chance.randrange(size)
    if how == "flipped bit in the tail":
        offset = chance.randrange(max(0, size - _TAIL), size)
    raw = bytearray(path.read_bytes())
    match how:
        case "cut end":
            offset = chance.randrange(max(0, size - _TAIL), size)
            del raw[offset:]
        case "zeroed sector":
            raw[offset : offset + 512] = bytes(len(raw[offset : offset + 512]))
        case "swapped pages" if size >= 2 * _PAGE:
            one, two = (chance.randrange(size // _PAGE) * _PAGE for _ in range(2))
            raw[one : one + _PAGE], raw[two : two + _PAGE] = raw[two : two + _PAGE], raw[one : one + _PAGE]
        case _:
            raw[offset] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)
    return Damage(how, "snapshot" if path.name.startswith("snapshot") else path.name, offset)


def _outcome(directory: Path) -> str:
    """The digest of what a host would start as, or why it would not."""
    try:
        with Store(directory, write=True) as store:
            return _text(recover(store, HostConfig()))
    except (JournalError, OSError) as error:
        return f"error: {error}"


def _text(recovered: Recovered) -> str:
    return f"record {recovered.n}, {recovered.machine.digest()}"
