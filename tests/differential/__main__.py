"""Judge the model against what real kernels and real processors answered.

    python -m tests.differential layouts FILE         what Linux computed from a processor's CPUID, or the CPUID alone
    python -m tests.differential sequences FILE       call sequences run by the kernel's own FPU code, step by step
    python -m tests.differential xcr0 FILE            which XCR0 a real KVM took, from userspace and from a guest
    python -m tests.differential xsave-verdicts FILE  what a real KVM said to edited XSAVE buffers
    python -m tests.differential xsave-buffers FILE   XSAVE buffers of a real KVM after a guest loaded known registers
    python -m tests.differential prctl FILE           arch_prctl(2) and sigaltstack(2) on a real kernel
    python -m tests.differential ptrace FILE          what a debugger may write into NT_X86_XSTATE of a real task
    python -m tests.differential native-images FILE   XSAVE, XSAVEC and XSAVEOPT images a bare processor stored
    python -m tests.differential native-faults FILE   what a bare processor's XRSTOR refuses
    python -m tests.differential live-cpu [--rounds N] [--seed S]   the running processor, at ring 3
    python -m tests.differential live-kvm [--rounds N] [--seed S]   the machine's KVM, by ioctls and ring-3 guest code
    python -m tests.differential everything           all of that, on the data in the tree and the machine it runs on

The last line is the figure, "layouts: 29 rows (12 truncated), 0 differ"; before it comes the first difference, if any.
Status 0: no row differs, or a live kind cannot run here and says why. 1: some do. 2: there was nothing to judge, or
the file could not be read.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

from tests.differential import (
    layouts,
    live_cpu,
    live_kvm,
    native,
    prctl,
    ptrace,
    sequences,
    tree,
    xcr0,
    xsave_buffers,
    xsave_verdicts,
)
from tests.differential.report import NotModelledError, Report, SkippedError

#: Kinds that read a file: called with its path and the beginning of a row's name.
FILE_KINDS: dict[str, Callable[[Path, str], Report]] = {
    "layouts": layouts.run,
    "sequences": sequences.run,
    "xcr0": xcr0.run,
    "xsave-verdicts": xsave_verdicts.run,
    "xsave-buffers": xsave_buffers.run,
    "prctl": prctl.run,
    "ptrace": ptrace.run,
    "native-images": native.run_images,
    "native-faults": native.run_faults,
}
#: Kinds that ask the machine they run on: called with a number of rounds and a seed.
LIVE_KINDS: dict[str, Callable[[int, int], Report]] = {"live-cpu": live_cpu.run, "live-kvm": live_kvm.run}

#: Every kind, one after the other; the status is the worst.
_EVERYTHING = "everything"
_ROUNDS = 10_000
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, NotModelledError)


def main(argv: list[str] | None = None) -> int:
    """Judge one file, or the machine; the last line printed is the figure."""
    args = _parser().parse_args(argv)
    if args.kind == _EVERYTHING:
        return max(main(command) for command in (*tree.arguments(), *([kind] for kind in LIVE_KINDS)))
    try:
        report = _judge(args)
    except SkippedError as skipped:
        print(f"{args.kind}: skipped: {skipped}")
        return 0
    except _UNREADABLE as error:
        print(f"{_what(args)}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if not report.rows:
        print(f"{_what(args)}: no row to judge, so this proves nothing", file=sys.stderr)
        return 2
    for line in report.lines(len(report.differences) if args.all else 1):
        print(line)
    return 1 if report.differences else 0


def _judge(args: argparse.Namespace) -> Report:
    if args.kind in FILE_KINDS:
        return FILE_KINDS[args.kind](args.file, args.name)
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    print(f"{args.kind}: seed {seed}; python -m tests.differential {args.kind} --rounds {args.rounds} --seed {seed}")
    return LIVE_KINDS[args.kind](args.rounds, seed)


def _what(args: argparse.Namespace) -> str:
    return f"{args.kind}: {args.file}" if args.kind in FILE_KINDS else str(args.kind)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.differential",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name in FILE_KINDS:
        kind = kinds.add_parser(name, help="against a data file")
        kind.add_argument("file", type=Path, help="a data file, .json or .json.gz")
        kind.add_argument("--name", default="", metavar="PREFIX", help="only rows whose name starts so")
    for name in LIVE_KINDS:
        kind = kinds.add_parser(name, help="against the running machine")
        kind.add_argument("--rounds", type=_positive, default=_ROUNDS, metavar="N", help=f"default {_ROUNDS}")
        kind.add_argument("--seed", type=int, metavar="S", help="default: a new one, which is printed")
    kinds.add_parser(_EVERYTHING, help="every kind, on the data in the tree and on the running machine")
    for kind in kinds.choices.values():
        kind.add_argument("--all", action="store_true", help="print every difference, not only the first")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
