"""``fpstated ctl watch``: what is there and what changes, a line each, until somebody has seen enough."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated, Final

import typer
from fpstate.v1 import exit_pb2, host_pb2, migration_pb2, session_pb2, vcpu_pb2, watch_pb2

from fpstated.ctl.complete import complete_vm
from fpstated.ctl.connection import complain, connection
from fpstated.ctl.follow import EXIT, HOST, MIGRATION, SESSION, TASK, VCPU, VM, Follower
from fpstated.ctl.names import vm_name
from fpstated.ctl.show import as_json as json_of
from fpstated.ctl.show import cell, console, mask, size, word


class Kind(StrEnum):
    """What changes."""

    HOST = "host"
    VM = "vm"
    VCPU = "vcpu"
    SESSION = "session"
    EXIT = "exit"
    TASK = "task"
    MIGRATION = "migration"


_KINDS: Final = {
    Kind.HOST: HOST,
    Kind.VM: VM,
    Kind.VCPU: VCPU,
    Kind.SESSION: SESSION,
    Kind.EXIT: EXIT,
    Kind.TASK: TASK,
    Kind.MIGRATION: MIGRATION,
}
#: What is shown where nobody says: tasks change with nearly every event.
_DEFAULT: Final = (Kind.HOST, Kind.VM, Kind.VCPU, Kind.SESSION, Kind.EXIT)


def watch(
    ctx: typer.Context,
    vm: Annotated[
        str, typer.Option(metavar="VM", help="Only this VM and what is in it.", autocompletion=complete_vm)
    ] = "",
    kind: Annotated[
        list[Kind] | None,
        typer.Option(help="Only resources of this kind; may be given several times. [all but task and migration]"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A line for each change: a ResourceChange as protobuf's JSON.")
    ] = False,
) -> None:
    """Show what is there, then every change, until Ctrl-C.

    What there was at the beginning is CREATED. When the host has forgotten what changed, when it restarts or cannot be
    reached for a while, this says so on standard error, lists again, and goes on with what differs.

    Examples: fpstated ctl watch --vm a; fpstated ctl watch --kind exit --json | jq -c .exit
    """
    kinds = tuple(_KINDS[each] for each in kind or _DEFAULT)
    follower = Follower(connection(ctx), kinds, vm_name(vm) if vm else "", complain)
    try:
        if not as_json:
            _row("REVISION", "CHANGE", "NAME", "")
        for change in follower.follow():
            if as_json:
                print(json.dumps(json_of(change)))
            else:
                _row(str(change.revision), word(watch_pb2.ChangeKind, change.kind), change.name, _detail(change))
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _row(revision: str, change: str, name: str, detail: str) -> None:
    """A line; the columns are as wide as nearly everything in them."""
    line = cell(f"{revision:>10}  ")
    line.append_text(cell(change))
    line.append(f"{'':{max(0, 9 - len(change))}}{name:<30}  {detail}".rstrip())
    console().print(line, soft_wrap=True)


def _detail(change: watch_pb2.ResourceChange) -> str:
    """What is worth a look."""
    match change.WhichOneof("resource"):
        case "vm":
            limit = size(change.vm.byte_limit if change.vm.HasField("byte_limit") else None)
            return f"uses {size(change.vm.bytes_used)}, limit {limit}"
        case "vcpu":
            vcpu = change.vcpu
            state = word(vcpu_pb2.VcpuState, vcpu.state)
            registers = f"XCR0 {mask(vcpu.xcr0)}, XFD {mask(vcpu.xfd)}"
            return f"{state}, {registers}, {size(vcpu.fpstate.size_bytes)}, next {vcpu.next_seq}"
        case "session":
            return f"{change.session.client_name or 'no name'}, epoch {change.session.epoch}, {_vcpus(change.session)}"
        case "exit":
            return _exit(change.exit)
        case "host":
            host = change.host
            limit = size(host.settings.byte_limit if host.settings.HasField("byte_limit") else None)
            return f"{word(host_pb2.DrainState, host.drain_state)}, byte limit {limit}"
        case "task":
            task = change.task
            where = f"on CPU {task.cpu}" if task.HasField("cpu") else "on no CPU"
            return f"{where}{f', runs {task.running_vcpu}' if task.running_vcpu else ''}"
        case "migration":
            return _migration(change.migration)
        case _:
            return ""


def _vcpus(session: session_pb2.Session) -> str:
    count = len(session.vcpus)
    return f"{count} vCPU{'' if count == 1 else 's'}"


def _migration(each: migration_pb2.Migration) -> str:
    state = word(migration_pb2.MigrationState, each.state)
    way = f"from {each.source_host}" if each.role == migration_pb2.MIGRATION_ROLE_TARGET else f"to {each.target}"
    return f"{state}, {way}, epoch {each.ownership_epoch}{f', {each.reason}' if each.reason else ''}"


def _exit(each: exit_pb2.Exit) -> str:
    parts = [
        word(exit_pb2.ExitState, each.state),
        f"{word(exit_pb2.ExitCause, each.cause)}, needs {size(each.bytes_needed)}",
        f"try {each.attempt}, generation {each.generation}",
    ]
    if each.decision:
        parts.append(f"{word(exit_pb2.DecisionKind, each.decision)} by {each.decided_by}")
    if each.result:
        parts.append(word(exit_pb2.ExitResult, each.result))
    return ", ".join(parts)
