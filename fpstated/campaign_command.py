"""``fpstated campaign``: many seeds of a plan, in blocks, on every processor there is; it goes on where it was stopped.

Status as of ``fpstated sim run``: 0 nothing is violated, 1 something is, 2 nothing can be said or the words are wrong,
3 the simulator itself is wrong. 130: interrupted; ``resume`` goes on.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fpstated.faults_command import PlanFile
from fpstated.files import expect_writable, write_output
from fpstated.sim.shared import BROKEN, INTERRUPTED, OK, UNKNOWN, VIOLATION, UsageError, complaints, loaded_plan

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from fpstate.fault.v1 import plan_pb2

    from fault_lab.campaign.standing import Standing
    from fault_lab.campaign.store import Store

campaign = typer.Typer(
    help="Many seeds of a plan, on every processor there is; resumable, failures sorted by kind.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

#: Half a second to two seconds of work for plans of the usual size.
_BLOCK: Final = 50

_Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The campaign's directory.", file_okay=False)]
_Jobs = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=1024, help="Processes; one for each CPU by default.")
]
_Dask = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Run on a Dask cluster: its scheduler, or `local`. Needs fpstated[dask].")
]
_Ray = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: its address, or `local`. Needs fpstated[ray].")
]
_Stop = Annotated[int | None, typer.Option(metavar="N", min=1, help="Stop once N distinct failures are known.")]
_Shrink = Annotated[int, typer.Option(metavar="N", min=0, help="Runs to make each kind of failure small; 0: none.")]


@campaign.command()
def run(
    plan: PlanFile,
    directory: Annotated[
        Path, typer.Option("-d", "--directory", "--dir", metavar="DIR", help="A new directory.", file_okay=False)
    ],
    seeds: Annotated[str, typer.Option(metavar="A..B", help="These seeds, both ends included.")],
    mode: Annotated[str, typer.Option(metavar="MODE", help="random, swarm or pct.")] = "random",
    depth: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Of pct: changes of priority.")] = 3,
    block: Annotated[int, typer.Option(metavar="N", min=1, help="Seeds in a block.")] = _BLOCK,
    jobs: _Jobs = None,
    dask: _Dask = "",
    ray: _Ray = "",
    stop_after: _Stop = None,
    shrink: _Shrink = 300,
) -> None:
    """Begin a campaign. The last line counts; each kind of failure comes with the command that repeats it."""
    with _complaints("run"):
        from fault_lab.campaign.outline import Outline
        from fault_lab.campaign.store import Store
        from fpstated.sim.run import chosen_seeds

        loaded = loaded_plan(plan)
        chosen = chosen_seeds(loaded.seed, seeds, given=False)
        outline = Outline(loaded, _mode(mode), depth, chosen[0], chosen[-1], block)
        with _executor(jobs, dask, ray) as (executor, workers):
            raise typer.Exit(_go(Store.create(directory, outline), executor, workers, stop_after, shrink))


@campaign.command()
def resume(
    directory: _Directory,
    jobs: _Jobs = None,
    dask: _Dask = "",
    ray: _Ray = "",
    stop_after: _Stop = None,
    shrink: _Shrink = 300,
) -> None:
    """Go on with a campaign: what is done is not done again."""
    with _complaints("resume"):
        from fault_lab.campaign.store import Store

        store = Store.open(directory)
        with _executor(jobs, dask, ray) as (executor, workers):
            raise typer.Exit(_go(store, executor, workers, stop_after, shrink))


@campaign.command()
def status(directory: _Directory) -> None:
    """Say how a campaign stands, with the status that it would end with now."""
    with _complaints("status"):
        from fault_lab.campaign.standing import Standing
        from fault_lab.campaign.store import Store

        store = Store.open(directory)
        standing = Standing.of(store.outline, store.blocks())
        raise typer.Exit(_told(store, standing))


@campaign.command()
def report(
    directory: _Directory,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The page.")],
) -> None:
    """Write a page about a campaign: figures, failures by kind, a map of its blocks."""
    with _complaints("report"):
        from fault_lab.campaign.page import page
        from fault_lab.campaign.standing import Standing
        from fault_lab.campaign.store import Store

        expect_writable(output)
        store = Store.open(directory)
        write_output(output, page(store, Standing.of(store.outline, store.blocks())))


def _go(store: Store, executor: Executor, workers: int, stop_after: int | None, shrink: int) -> int:
    from fault_lab.campaign.run import run_campaign, shrink_failures
    from fpstated.progress import stages

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is done is kept, and `resume` goes on
    with store.locked(), stages() as told:
        standing = run_campaign(
            store,
            executor,
            jobs=workers,
            stop_after=stop_after,
            on_block=lambda now: told(f"{len(now.failures)} kinds of failure", now.runs, store.outline.runs),
        )
        if shrink:
            shrink_failures(store, standing, executor, runs=shrink)
    return _told(store, standing)


def _told(store: Store, standing: Standing) -> int:
    """Print what there is to say, and return the status."""
    from fault_lab.campaign.page import ranked, repeat

    for failure in ranked(standing):
        print(f"violation: {failure.check}, {failure.count} runs, first with seed {failure.seed}: {failure.text}")
        print(f"repeat: {repeat(store, failure)}")
    if standing.error:
        print(standing.error, file=sys.stderr)
        print(f"the simulator itself failed in {standing.broken} runs, see above", file=sys.stderr)
    unseen = standing.unseen if standing.done else []
    for name in unseen:
        print(f"never seen: {name}", file=sys.stderr)
    print(standing.line)
    if standing.broken:
        return BROKEN
    return VIOLATION if standing.failures else UNKNOWN if unseen or standing.unknown else OK


def _mode(name: str) -> plan_pb2.SearchMode.ValueType:
    from fault_lab.campaign.outline import SEED_MODES
    from fault_lab.search.run import mode_name

    modes = {mode_name(mode): mode for mode in SEED_MODES}
    if name not in modes:
        raise UsageError(
            f"--mode: expected one of {', '.join(modes)}, whose runs follow from their seeds, got {name!r}"
        )
    return modes[name]


@contextmanager
def _executor(jobs: int | None, dask: str, ray: str) -> Iterator[tuple[Executor, int]]:
    """The executor that the words ask for, and for how many blocks at a time."""
    from fault_lab.campaign import executors

    if dask and ray:
        raise UsageError("expected --dask or --ray, got both")
    workers = jobs or len(os.sched_getaffinity(0))
    chosen = executors.dask(dask, workers) if dask else executors.ray(ray) if ray else executors.processes(workers)
    with chosen as executor:
        yield executor, workers


@contextmanager
def _complaints(command: str) -> Iterator[None]:
    """What is wrong with words or directories is one line and status 2; an interrupt leaves what is done."""
    with complaints(command, "campaign"):
        from concurrent.futures import BrokenExecutor

        from fault_lab.campaign.executors import NoClusterError
        from fault_lab.campaign.outline import OutlineError
        from fault_lab.campaign.store import StoreError

        try:
            yield
        except (NoClusterError, OutlineError, StoreError) as error:
            raise UsageError(str(error)) from error
        except BrokenExecutor as error:
            print(f"fpstated campaign {command}: a worker is gone: {error}; `resume` goes on", file=sys.stderr)
            raise typer.Exit(BROKEN) from None
        except KeyboardInterrupt:
            print(f"fpstated campaign {command}: interrupted; `fpstated campaign resume` goes on", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
