"""``fpstated ctl migrate``: a VM goes from this host to another one, step by step, and whatever stops it says so."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated, Final

import typer
from fpstate.v1 import migration_pb2, migration_pb2_grpc

from fpstated.ctl.connection import REFUSED, UNREACHABLE, Connection, complain, connection, told, unreachable
from fpstated.ctl.names import vm_name
from fpstated.ctl.show import Json, mask, print_fields, print_json, size, word
from fpstated.ctl.standing import Standing
from fpstated.ctl.target import TargetCa, TargetCert, TargetKey, both_answer, line_of, target_tls
from fpstated.ctl.vms import VmArgument
from guest_agent.error import HostError
from guest_agent.host import Host
from guest_agent.migrate import PATIENCE_S, Incompatible, MigrateStep, migrate

#: How long a host may take to say where a move stands.
_ANSWER_S: Final = 5.0


def migrate_vm(  # noqa: PLR0913, PLR0917 -- one parameter an option
    ctx: typer.Context,
    vm: VmArgument,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The other host: unix:PATH or HOST:PORT.")],
    check: Annotated[bool, typer.Option("--check", help="Only say what stands against it; the VM goes on.")] = False,
    guests_at: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where guests reach the target; TARGET, if not given.")
    ] = "",
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long a host that has gone away is asked again.")
    ] = PATIENCE_S,
    target_tls_cert: TargetCert = None,
    target_tls_key: TargetKey = None,
    target_tls_ca: TargetCa = None,
    as_json: Json = False,
) -> None:
    """Move a VM to another host, or finish a move there that was begun before. Its guests go on there.

    Ctrl-C stops the command and says where the move stands, and the commands that go on with it or take it back.

    Examples: fpstated ctl migrate a unix:/run/b.sock --check; fpstated ctl migrate a b.example:7443
    """
    here, name = connection(ctx), vm_name(vm)
    tls = target_tls(here.tls, target_tls_cert, target_tls_key, target_tls_ca)
    with both_answer(here, target, tls) as there:
        goes_to = guests_at or target
        if check:
            _check(here, there, name, goes_to, as_json=as_json)
            return
        _move(ctx, here, there, name, goes_to, patience, as_json=as_json)


def _check(here: Connection, there: Connection, vm: str, goes_to: str, *, as_json: bool) -> None:
    """What both hosts say, of which nothing has changed."""
    ours, theirs = (migration_pb2_grpc.MigrationServiceStub(each.channel) for each in (here, there))
    begin = migration_pb2.BeginMigrationRequest(name=vm, target=goes_to, validate_only=True)
    needed = here.call(ours.BeginMigration, begin).requirements
    answer = there.call(theirs.CheckCompat, migration_pb2.CheckCompatRequest(requirements=needed))
    if as_json:
        print_json(answer)
    elif answer.compatible:
        print(f"{vm}: can go to {there.address}")
        print_fields(
            [
                ("needs", f"xfeatures {mask(needed.xfeatures)}, dynamic {mask(needed.dynamic_xfeatures)}"),
                ("vCPUs", needed.vcpu_count),
                ("containers", f"{size(needed.container_bytes_max)} at most"),
            ]
        )
    if not answer.compatible:
        if not as_json:
            _list(vm, there.address, answer.incompatibilities)
        raise typer.Exit(REFUSED)


def _move(
    ctx: typer.Context, here: Connection, there: Connection, vm: str, goes_to: str, patience_s: float, *, as_json: bool
) -> None:
    steps = Steps(shown=not as_json)
    hosts = Host(here.channel), Host(there.channel)
    try:
        done = migrate(*hosts, vm, target_address=goes_to, patience_s=patience_s, on_step=steps.begins)
        steps.done()
    except Incompatible as error:
        steps.stop()
        _list(vm, there.address, error.incompatibilities)
        raise typer.Exit(REFUSED) from None
    except HostError as error:
        steps.stop()
        if steps.now in (None, MigrateStep.PREFLIGHT):
            raise
        gone = unreachable(error)
        complain(f"a host has gone away ({error.refusal.message})" if gone else told(ctx, error))
        for note in getattr(error, "__notes__", ()):
            complain(note)
        _say_where(ctx, here, there, goes_to)
        raise typer.Exit(UNREACHABLE if gone else REFUSED) from None
    except KeyboardInterrupt:
        steps.stop()
        complain("stopped")
        _say_where(ctx, here, there, goes_to)
        raise typer.Exit(REFUSED) from None
    if as_json:
        stub = migration_pb2_grpc.MigrationServiceStub(there.channel)
        print_json(there.call(stub.GetMigration, migration_pb2.GetMigrationRequest(name=done.migration)))
    else:
        print(f"{vm}: at {done.target} now, under epoch {done.ownership_epoch} ({done.migration})")


def _list(vm: str, target: str, found: Iterable[migration_pb2.Incompatibility]) -> None:
    complain(f"{vm} cannot go to {target}, and goes on where it is:")
    for each in found:
        print(
            f"  {word(migration_pb2.IncompatibilityKind, each.kind)}: {each.field}: {each.description}", file=sys.stderr
        )


def _say_where(ctx: typer.Context, here: Connection, there: Connection, goes_to: str) -> None:
    """In a line, and a line for each command that leads on. A host that hangs is not waited for long."""
    for each in (here, there):
        each.timeout_s = min(each.timeout_s, _ANSWER_S)
    standing = Standing.of(here, there, vm_name(str(ctx.params["vm"])), goes_to)
    complain(standing.text)
    words = [str(ctx.params["vm"]), str(ctx.params["target"])]
    if standing.may_go_on:
        guests_at = ["--guests-at", str(ctx.params["guests_at"])] if ctx.params["guests_at"] else []
        print(f"  to go on:      {line_of(ctx, 'migrate', *words, *guests_at)}", file=sys.stderr)
    if standing.may_abort:
        print(f"  to take back:  {line_of(ctx, 'migrations', 'abort', *words)}", file=sys.stderr)


class Steps:
    """Each step as it is done; on a terminal also the one that is being taken."""

    def __init__(self, *, shown: bool) -> None:
        self.now: MigrateStep | None = None
        self._shown = shown

    def begins(self, step: MigrateStep) -> None:
        """The one before is done."""
        self.done()
        self.now = step
        if self._shown and sys.stdout.isatty():
            print(f"{step.value} ...", end="", flush=True)

    def done(self) -> None:
        """What was being done is."""
        if self._shown and self.now is not None:
            print(f"{self._over}{self.now.value}: done", flush=True)

    def stop(self) -> None:
        """It comes to nothing."""
        if self._shown and self.now is not None and sys.stdout.isatty():
            print(flush=True)

    @property
    def _over(self) -> str:
        """Where the step stands on a terminal, it is written over."""
        return "\r\x1b[K" if sys.stdout.isatty() else ""
