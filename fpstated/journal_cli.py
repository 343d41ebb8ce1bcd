"""``fpstated journal``: look into a state directory, prove it, copy it, and cut off what is damaged."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fpstated.progress import stages

journal = typer.Typer(
    help="A host's state directory: is it whole, what is in it, and copies of it. verify, dump, replay and backup may "
    "be used while the host runs. docs/storage.md explains the rest.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The state directory.", exists=True, file_okay=False)]
_NS_PER_S = 1_000_000_000


@contextmanager
def _errors(command: str) -> Iterator[None]:
    """What is wrong with a directory, in words and as a status."""
    if find_spec("apsw") is None:
        _say(command, "this install is a guest's; this needs: pip install 'fpstated[host]'")
        raise typer.Exit(2)
    from host_agent.journal.errors import JournalError

    try:
        yield
    except (JournalError, OSError) as error:
        details = getattr(error, "details", "")
        _say(command, f"{error}\n{details}" if details else str(error))
        raise typer.Exit(1) from None


def _say(command: str, text: str) -> None:
    print(f"fpstated journal {command}: {text}", file=sys.stderr)


@journal.command()
def verify(
    directory: Directory,
    replay: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Carry the records since the newest snapshot out as well.")
    ] = True,
    truncate_after: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="First give up every record after N, though it was acknowledged. The host must be stopped; make a "
            "copy of the directory before.",
        ),
    ] = None,
) -> None:
    """Prove a state directory: the file, the chain of its records, each snapshot, and the way to its end."""
    with _errors("verify"):
        from host_agent.journal.inspection import truncate
        from host_agent.journal.inspection import verify as verify_directory

        if truncate_after is not None:
            print(f"journal: gave up {truncate(directory, truncate_after):,} records after record {truncate_after}")
        with stages() as heard:
            report = verify_directory(directory, replay=replay, heard=heard)
    for problem in report.problems:
        _say("verify", problem)
    snapshots = ", ".join(str(n) for n in sorted(report.snapshots)) or "none"
    digest = f", digest {report.digest}" if report.digest else ""
    state = "damaged" if report.problems else "whole"
    print(
        f"journal: {state}: records {report.first} to {report.last}, revision {report.revision}, "
        f"snapshots {snapshots}{digest}"
    )
    raise typer.Exit(1 if report.problems else 0)


@journal.command()
def dump(
    directory: Directory,
    after: Annotated[int, typer.Option(metavar="N", min=0, help="Begin behind record N.")] = 0,
    through: Annotated[int | None, typer.Option(metavar="N", min=0, help="End with record N.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print the records: number, revision, time, command and what came of it."""
    with _errors("dump"):
        from host_agent.journal.inspection import entries, entry_json

        for entry in entries(directory, after=after, through=through):
            if as_json:
                print(json.dumps(entry_json(entry), separators=(",", ":")))
            else:
                print(f"{entry.n:>8}  rev {entry.revision}  {entry.now_ns / _NS_PER_S:.6f} s  {entry.command}")
                print(f"{'':>8}  -> {entry.outcome}")


@journal.command()
def replay(
    directory: Directory,
    through: Annotated[int | None, typer.Option(metavar="N", min=0, help="Stop after record N.")] = None,
    digest: Annotated[str, typer.Option(help="The digest that must come out; status 1 if another does.")] = "",
) -> None:
    """Carry the records out again, compare every outcome, and print the digest of the host they lead to."""
    with _errors("replay"):
        from host_agent.journal.recovery import recover
        from host_agent.journal.store import Store
        from host_agent.state import HostConfig

        with Store(directory, write=False) as store, store.reading(), stages() as heard:
            recovered = recover(store, HostConfig(), through=through, heard=heard)
    found = recovered.machine.digest()
    print(f"replay: record {recovered.n}, revision {recovered.machine.state.revision}, digest {found}")
    if digest and digest != found:
        _say("replay", f"expected {digest}")
        raise typer.Exit(1)


@journal.command()
def backup(
    directory: Directory, target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new or empty directory.")]
) -> None:
    """Copy a state directory, also while its host runs; the copy is of one moment, and is proved before this ends."""
    with _errors("backup"):
        from host_agent.journal.backup import back_up

        with stages() as heard:
            copied = back_up(directory, target, heard=heard)
    print(f"journal: {target} holds {directory} as of record {copied.n}, digest {copied.machine.digest()}")


@journal.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What backup made.", exists=True, file_okay=False)],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where a host shall go on: new or empty.")],
) -> None:
    """Copy a backup to where a host shall go on with it. Never over something that is there."""
    with _errors("restore"):
        from host_agent.journal.backup import restore as restore_directory

        with stages() as heard:
            copied = restore_directory(source, directory, heard=heard)
    print(f"journal: {directory} goes on at record {copied.n}, digest {copied.machine.digest()}")
