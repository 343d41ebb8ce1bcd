"""``python -m tests.fuzz_text --seconds N``: hostile texts for every parser; the last line has the figures."""

from __future__ import annotations

import argparse
import secrets
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz_text import covered, mutation
from tests.fuzz_text.targets import TARGETS, Target


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; status 1 where a parser did something else than it documents."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_text", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for all targets together (default 20)")
    parser.add_argument("--seed", type=int, default=None, help="of all chance; a new one is drawn and printed")
    parser.add_argument(
        "--target", action="append", choices=[each.name for each in TARGETS], help="only this; several times"
    )
    parser.add_argument(
        "--engine", choices=("auto", "atheris", "mutation"), default="auto", help="auto: atheris where it is"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz_text"), help="for inputs that were found")
    parser.add_argument("--input", type=Path, metavar="FILE", help="only what is in this file, with one --target")
    asked = parser.parse_args(arguments)
    targets = [each for each in TARGETS if not asked.target or each.name in asked.target]
    if asked.input is not None:
        with mutation.no_hang():
            targets[0].check(asked.input.read_bytes())
        print(f"{targets[0].name}: as documented")
        return 0
    atheris = asked.engine == "atheris" or (asked.engine == "auto" and find_spec("atheris") is not None)
    seed = asked.seed if asked.seed is not None else secrets.randbelow(1 << 32)
    print(f"seed {seed}; again: python -m tests.fuzz_text --seconds {asked.seconds:g} --seed {seed}", flush=True)
    return _run(targets, asked.seconds / len(targets), seed, asked.folder, atheris=atheris)


def _run(targets: Sequence[Target], seconds: float, seed: int, folder: Path, *, atheris: bool) -> int:
    inputs = failures = 0
    folder.mkdir(parents=True, exist_ok=True)
    for target in targets:
        if atheris:
            count, found = covered.run_process(target.name, seconds=seconds, seed=seed, folder=folder)
        else:
            count, found = _mutated(target, seconds, seed, folder)
        inputs += count
        failures += found is not None
        print(
            f"{target.name}: {count:,} inputs" if found is None else f"{target.name}: FAILED after {count:,} inputs",
            flush=True,
        )
        if found is not None:
            _show(target, found)
    engine = "atheris" if atheris else "mutation"
    print(f"inputs: {inputs:,}, parsers: {len(targets)}, failures: {failures}, engine: {engine}")
    return 1 if failures else 0


def _mutated(target: Target, seconds: float, seed: int, folder: Path) -> tuple[int, Path | None]:
    count, raw, error = mutation.run(target, seconds=seconds, seed=seed)
    if error is None:
        return count, None
    found = folder / f"crash-{target.name}"
    found.write_bytes(raw)
    return count, found


def _show(target: Target, found: Path) -> None:
    print(f"again: python -m tests.fuzz_text --target {target.name} --input {found}")
    try:
        with mutation.no_hang():
            target.check(found.read_bytes())
    except Exception:  # noqa: BLE001 -- that is what was found
        print("".join(traceback.format_exc(limit=-4)[-3000:]))


if __name__ == "__main__":
    sys.exit(main())
