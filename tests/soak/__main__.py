"""``python -m tests.soak --minutes N``: a live host under storms; the last line has the figures."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence

from tests.soak.run import Soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; status 1 where something is not flat, is left over, or is logged as a bug."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the storms last (default 10)")
    parser.add_argument("--seed", type=int, default=None, help="of the moments at which streams are cut")
    asked = parser.parse_args(arguments)
    seed = asked.seed if asked.seed is not None else secrets.randbelow(1 << 32)
    print(f"seed {seed}; again: python -m tests.soak --minutes {asked.minutes:g} --seed {seed}", flush=True)
    soak = Soak(asked.minutes * 60, seed)
    soak.run()
    print("rounds: " + ", ".join(f"{name} {count:,}" for name, count in soak.rounds.items()))
    for failure, count in soak.failures.most_common(5):
        print(f"a round gave up {count} times: {failure}")
    for wrong in soak.wrong:
        print(f"wrong: {wrong}")
    verdict = "NOT FLAT" if soak.wrong else "flat"
    print(f"minutes: {asked.minutes:g}, rounds: {soak.rounds.total():,}, {soak.said}, {verdict}")
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
