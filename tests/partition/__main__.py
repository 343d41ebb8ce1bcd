"""``python -m tests.partition --rounds N``: processes that are cut off and stopped; the last line has the figures."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence

from tests.partition.keepalive import measure
from tests.partition.run import Partition


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; status 1 where something was lost, somebody harmed, or anything else was not as it has to be."""
    parser = argparse.ArgumentParser(prog="python -m tests.partition", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="how many troubles; 12 kinds take turns (default 12)")
    parser.add_argument("--seed", type=int, default=None, help="of their order, and of whom they meet")
    parser.add_argument("--proxies", action="store_true", help="cut proxies, also where namespaces are allowed")
    parser.add_argument("--keepalive", action="store_true", help="instead: how long until a dead peer is found")
    asked = parser.parse_args(arguments)
    if asked.keepalive:
        return _keepalive()
    seed = asked.seed if asked.seed is not None else secrets.randbelow(1 << 32)
    how = " --proxies" if asked.proxies else ""
    print(f"seed {seed}; again: python -m tests.partition --rounds {asked.rounds} --seed {seed}{how}", flush=True)
    partition = Partition(asked.rounds, seed, proxies=asked.proxies)
    partition.run()
    found = partition.verdict
    for wrong in found.wrong:
        print(f"wrong: {wrong}")
    print(
        f"rounds: {partition.rounds}, acknowledged: {partition.acknowledged:,}, lost: {found.lost}, "
        f"harmed: {found.harmed}, fenced: {found.fenced}, decisions: {partition.decisions:,}, wrong: {len(found.wrong)}"
    )
    return 1 if found.wrong else 0


def _keepalive() -> int:
    took, wrong = measure()
    for each in wrong:
        print(f"wrong: {each}")
    print("found a dead peer after: " + ", ".join(f"{who} {seconds:.0f} s" for who, seconds in took.items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
