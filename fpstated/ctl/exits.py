"""``fpstated ctl exits`` and ``audit``: what waits for a decision, and which were taken."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final

import typer
from fpstate.v1 import exit_pb2, exit_pb2_grpc

from fpstated.ctl.complete import complete_exit, complete_vm
from fpstated.ctl.connection import Connection, connection
from fpstated.ctl.names import exit_name, vm_name
from fpstated.ctl.show import Json, mask, print_fields, print_json, print_table, seconds, size, word

exits = typer.Typer(help="Exits to userspace.", no_args_is_help=True, rich_markup_mode=None, add_completion=False)

ExitArgument = Annotated[
    str,
    typer.Argument(
        metavar="EXIT",
        help="VM/INDEX/NUMBER or the full name.",
        autocompletion=complete_exit,
        show_default=False,
    ),
]
VmOption = Annotated[str, typer.Option(metavar="VM", help="Only of this VM.", autocompletion=complete_vm)]


class State(StrEnum):
    """Where an exit is."""

    OPEN = "open"
    APPLYING = "applying"
    PAUSED = "paused"
    RESOLVED = "resolved"
    CANCELLED = "cancelled"


UNRESOLVED: Final = (exit_pb2.EXIT_STATE_OPEN, exit_pb2.EXIT_STATE_APPLYING, exit_pb2.EXIT_STATE_PAUSED)


def exit_stub(found: Connection) -> exit_pb2_grpc.ExitServiceStub:
    """The service of exits."""
    return exit_pb2_grpc.ExitServiceStub(found.channel)


@exits.command("list")
def list_exits(
    ctx: typer.Context,
    vm: VmOption = "",
    state: Annotated[list[State] | None, typer.Option(help="Only in this state; may be given several times.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Settled ones as well, as far as they are kept.")] = False,
    as_json: Json = False,
) -> None:
    """List the exits that wait for a decision, oldest first.

    Example: fpstated ctl exits list --vm a --all
    """
    found = connection(ctx)
    wanted = [exit_pb2.ExitState.Value(f"EXIT_STATE_{each.name}") for each in state or ()]
    request = exit_pb2.ListExitsRequest(
        vm=vm_name(vm) if vm else "", states=wanted or ([] if everything else UNRESOLVED)
    )
    answer = found.pages(exit_stub(found).ListExits, request)
    if as_json:
        print_json(answer)
        return
    columns = ("NAME", "STATE", "CAUSE", "TRIGGER", "NEEDS>", "TRIES>", "GEN>", "LEFT>", "DECIDED", "BY", "RESULT")
    print_table(columns, map(_row, answer.exits))


def _row(each: exit_pb2.Exit) -> tuple[object, ...]:
    return (
        each.name,
        word(exit_pb2.ExitState, each.state),
        word(exit_pb2.ExitCause, each.cause),
        word(exit_pb2.ExitTrigger, each.trigger),
        size(each.bytes_needed),
        each.attempt,
        each.generation,
        _left(each),
        word(exit_pb2.DecisionKind, each.decision),
        each.decided_by,
        word(exit_pb2.ExitResult, each.result),
    )


def _left(each: exit_pb2.Exit) -> str:
    return f"{each.expires_in.seconds + each.expires_in.nanos / 1e9:.1f} s" if each.HasField("expires_in") else ""


@exits.command("get")
def get_exit(ctx: typer.Context, name: ExitArgument, as_json: Json = False) -> None:
    """Show one exit and the decisions that it takes.

    Example: fpstated ctl exits get a/0/7
    """
    found = connection(ctx)
    answer = found.call(exit_stub(found).GetExit, exit_pb2.GetExitRequest(name=exit_name(name)))
    if as_json:
        print_json(answer)
    else:
        print_exit(answer.exit)


def print_exit(each: exit_pb2.Exit) -> None:
    """A name and a value a line."""
    allowed = (word(exit_pb2.DecisionKind, kind).lower().replace("_", "-") for kind in each.allowed_decisions)
    print_fields(
        [
            ("name", each.name),
            ("state", word(exit_pb2.ExitState, each.state)),
            ("result", word(exit_pb2.ExitResult, each.result)),
            ("cause", f"{word(exit_pb2.ExitCause, each.cause)} ({each.errno_name})"),
            ("trigger", word(exit_pb2.ExitTrigger, each.trigger)),
            ("XCR0", f"{mask(each.old_xcr0)} -> {mask(each.new_xcr0)}"),
            ("XFD", f"{mask(each.old_xfd)} -> {mask(each.new_xfd)}"),
            ("lacks", mask(each.xfeatures)),
            ("needs", size(each.bytes_needed)),
            ("tries", each.attempt),
            ("generation", each.generation),
            ("time left", _left(each)),
            ("decided", word(exit_pb2.DecisionKind, each.decision)),
            ("by", each.decided_by),
            ("takes", " ".join(allowed)),
        ]
    )


def audit(
    ctx: typer.Context,
    vm: VmOption = "",
    of: Annotated[str, typer.Option("--exit", metavar="EXIT", help="Only about this exit.")] = "",
    as_json: Json = False,
) -> None:
    """Show who decided what, when and why, oldest first.

    Example: fpstated ctl audit --vm a
    """
    found = connection(ctx)
    request = exit_pb2.ListDecisionsRequest(vm=vm_name(vm) if vm else "", exit=exit_name(of) if of else "")
    answer = found.pages(exit_stub(found).ListDecisions, request)
    if as_json:
        print_json(answer)
        return
    columns = ("NR>", "TIME", "EXIT", "GEN>", "CAUSE", "DECISION", "STATE", "RESULT", "BY", "PRINCIPAL", "REASON")
    print_table(columns, map(_decision_row, answer.decisions))


def _decision_row(each: exit_pb2.DecisionRecord) -> tuple[object, ...]:
    when = datetime.fromtimestamp(each.time.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        each.number,
        when,
        each.exit,
        each.generation,
        word(exit_pb2.ExitCause, each.cause),
        decision_text(each.decision),
        word(exit_pb2.ExitState, each.state),
        word(exit_pb2.ExitResult, each.result),
        each.decided_by,
        each.principal,
        each.reason,
    )


def decision_text(decision: exit_pb2.Decision) -> str:
    """A decision with what it says."""
    kind = (decision.WhichOneof("kind") or "").upper()
    match kind:
        case "RETRY_AFTER":
            return f"{kind} {seconds(decision.retry_after.delay)}"
        case "RAISE_LIMIT":
            scope = word(exit_pb2.LimitScope, decision.raise_limit.scope) or "VM"
            return f"{kind} {scope} {size(decision.raise_limit.bytes)}"
        case "RECLAIM":
            return " ".join((kind, *decision.reclaim.victims, *(["any"] if decision.reclaim.any else [])))
        case "MIGRATE":
            return f"{kind} {decision.migrate.target}"
        case _:
            return kind
