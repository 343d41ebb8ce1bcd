"""The command: ``python -m tests.crash --kills N [--seed S] [--faults | --full]``, or ``--damages N``."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.crash.campaign import Campaign, Tally
from tests.crash.damage import damage_campaign
from tests.crash.faults import FaultCampaign
from tests.crash.full import FullCampaign, small_disk
from tests.crash.moments import Moment


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign; status 1 where anything was lost, duplicated, or is not what it must be."""
    options = _options(arguments)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"again: python -m tests.crash {options.flags} --seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fpstated-crash-") as folder:
        if options.damages:
            return damage_campaign(Path(folder), seed, options.damages)
        return _kill(Path(folder), seed, options)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="how many processes to kill")
    parser.add_argument("--seed", type=int, default=None, help="of what is killed, and when; drawn where none is given")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--faults", action="store_true", help="errors of the disk and power cuts as well")
    how.add_argument("--full", action="store_true", help="a disk that fills up as well")
    how.add_argument("--damages", type=int, default=0, help="damage a stopped host's directory so many times instead")
    options = parser.parse_args(arguments)
    how_text = "--faults" if options.faults else "--full" if options.full else ""
    options.flags = f"--damages {options.damages}" if options.damages else f"--kills {options.kills} {how_text}".strip()
    return options


def _kill(folder: Path, seed: int, options: argparse.Namespace) -> int:
    begin_s = time.monotonic()
    with _sigterm() as told_to_end, _campaign(folder, seed, options) as campaign:
        if campaign.no_kvm:
            print(f"skipped: real guests ({campaign.no_kvm})")
        try:
            campaign.start()
            while not campaign.is_done(options.kills):
                found = len(campaign.findings())
                campaign.round()
                _say_where(campaign, begin_s, found)
                if told_to_end.is_set():
                    return 128 + signal.SIGTERM
            campaign.end()
        finally:
            campaign.close()
    print(table(campaign.tally))
    if isinstance(campaign, FaultCampaign | FullCampaign):
        print(campaign.figures())
    print(f"guests run to their end and verified: {campaign.verified}; {time.monotonic() - begin_s:.0f} s")
    return figures(campaign)


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """What is set when this process is told to end, which is done after a kill: nothing is to be left running."""
    told_to_end = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: told_to_end.set())
    try:
        yield told_to_end
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_where(campaign: Campaign, begin_s: float, found: int) -> None:
    """On standard error, for whoever waits."""
    for how, text in campaign.findings()[found:]:
        print(f"\n{how}: {text}", file=sys.stderr)
    print(f"\r{campaign.tally.kills} kills, {time.monotonic() - begin_s:.0f} s", end="", file=sys.stderr, flush=True)


@contextmanager
def _campaign(folder: Path, seed: int, options: argparse.Namespace) -> Iterator[Campaign]:
    if options.full:
        with small_disk(folder) as reason:
            yield FullCampaign(folder, seed, reason)
    else:
        yield FaultCampaign(folder, seed) if options.faults else Campaign(folder, seed)


def table(tally: Tally) -> str:
    """Where the kills have hit."""
    rows = [f"{tally.moments[moment]:>6}  {moment.value}" for moment in Moment]
    rows.append(
        f"{tally.committed_unanswered:>6}  of the kills of the host: events were committed and not acknowledged"
    )
    rows.append(f"{tally.sent_uncommitted:>6}  of the kills of the host: events were sent and not committed")
    return "\n".join(rows)


def figures(campaign: Campaign) -> int:
    """Print the last line, and what was found above it; returns the status."""
    tally = campaign.tally
    findings = campaign.findings()
    for how, text in findings[:50]:
        print(f"{how}: {text}")
    count = Counter(how for how, _ in findings)
    print(
        f"kills: {tally.kills}, acknowledged: {campaign.acknowledged}, lost: {count['lost']}, "
        f"duplicated: {count['duplicated']}, diverged: {count['diverged']}"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
