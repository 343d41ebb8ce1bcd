"""``fpstated ctl migrations``: VMs on their way, as this host sees them, and how one is taken back."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from fpstate.v1 import migration_pb2, migration_pb2_grpc

from fpstated.ctl.complete import complete_vm
from fpstated.ctl.connection import REFUSED, Connection, complain, connection
from fpstated.ctl.names import migration_name, vm_name
from fpstated.ctl.show import Json, print_fields, print_json, print_table, word
from fpstated.ctl.target import TargetCa, TargetCert, TargetKey, both_answer, target_tls
from fpstated.ctl.vms import VmArgument
from guest_agent.host import Host
from guest_agent.migrate import abort_migration

migrations = typer.Typer(
    help="VMs that move from host to host.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

_SOURCE: Final = migration_pb2.MIGRATION_ROLE_SOURCE
_OPEN: Final = (
    migration_pb2.MIGRATION_STATE_BEGUN,
    migration_pb2.MIGRATION_STATE_IMPORTED,
    migration_pb2.MIGRATION_STATE_STAGED,
)


def _stub(found: Connection) -> migration_pb2_grpc.MigrationServiceStub:
    return migration_pb2_grpc.MigrationServiceStub(found.channel)


@migrations.command("list")
def list_migrations(
    ctx: typer.Context,
    vm: Annotated[
        str, typer.Argument(metavar="[VM]", help="Only of this VM.", autocompletion=complete_vm, show_default=False)
    ] = "",
    as_json: Json = False,
) -> None:
    """List the migrations of a VM, or of all, as this host sees them, the oldest first.

    Example: fpstated ctl migrations list
    """
    answer = _listed(connection(ctx), vm_name(vm) if vm else "")
    if as_json:
        print_json(answer)
        return
    print_table(("NAME", "ROLE", "STATE", "EPOCH>", "FROM", "REASON", "TO"), map(_row, answer.migrations))


def _listed(found: Connection, vm: str) -> migration_pb2.ListMigrationsResponse:
    return found.pages(_stub(found).ListMigrations, migration_pb2.ListMigrationsRequest(parent=vm))


def _row(each: migration_pb2.Migration) -> tuple[object, ...]:
    return each.name, _role(each), _state(each), each.ownership_epoch, each.source_host, each.reason, each.target


def _role(each: migration_pb2.Migration) -> str:
    return word(migration_pb2.MigrationRole, each.role)


def _state(each: migration_pb2.Migration) -> str:
    return word(migration_pb2.MigrationState, each.state)


@migrations.command("get")
def get_migration(
    ctx: typer.Context,
    migration: Annotated[str, typer.Argument(metavar="MIGRATION", help="VM/ID or vms/VM/migrations/ID.")],
    as_json: Json = False,
) -> None:
    """Show one migration as this host sees it.

    Example: fpstated ctl migrations get a/m-0123456789ab
    """
    found, name = connection(ctx), migration_name(migration)
    answer = found.call(_stub(found).GetMigration, migration_pb2.GetMigrationRequest(name=name))
    if as_json:
        print_json(answer)
    else:
        _print(answer.migration)


def _print(each: migration_pb2.Migration) -> None:
    print_fields(
        [
            ("name", each.name),
            ("this host", _role(each)),
            ("state", _state(each)),
            ("epoch", each.ownership_epoch),
            ("from", each.source_host),
            ("to", each.target),
            ("begun", each.create_time.ToJsonString()),
            ("reason", each.reason),
        ]
    )


@migrations.command("abort")
def abort(  # noqa: PLR0913, PLR0917 -- one parameter an option
    ctx: typer.Context,
    vm: VmArgument,
    target: Annotated[str, typer.Argument(metavar="[TARGET]", help="The other host.", show_default=False)] = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="For whoever reads the log later.")] = "by an operator",
    force: Annotated[
        bool,
        typer.Option("--force", help="At this host alone, without asking the other, which must never run the VM then."),
    ] = False,
    target_tls_cert: TargetCert = None,
    target_tls_key: TargetKey = None,
    target_tls_ca: TargetCa = None,
    as_json: Json = False,
) -> None:
    """Take a migration from this host to TARGET back: the VM goes on here. What is committed cannot be taken back.

    With --force and without TARGET: what this host has of it, where the other one is lost for good.

    Examples: fpstated ctl migrations abort a unix:/run/b.sock; fpstated ctl migrations abort a --force
    """
    here, name = connection(ctx), vm_name(vm)
    if force == bool(target):
        raise typer.BadParameter("expected TARGET, or --force without it")
    if force:
        found = _abort_here(here, name, reason)
    else:
        tls = target_tls(here.tls, target_tls_cert, target_tls_key, target_tls_ca)
        with both_answer(here, target, tls) as there:
            if not abort_migration(Host(here.channel), Host(there.channel), name, reason=reason):
                complain(f"no migration of {name} from here to {target} is open")
                raise typer.Exit(REFUSED)
        found = next(each for each in reversed(_listed(here, name).migrations) if each.role == _SOURCE)
    answer = here.call(_stub(here).GetMigration, migration_pb2.GetMigrationRequest(name=found.name))
    if as_json:
        print_json(answer)
    else:
        print(f"{found.name}: {_state(answer.migration)} here")


def _abort_here(here: Connection, vm: str, reason: str) -> migration_pb2.Migration:
    """The one of the VM that is open here."""
    found = [each for each in _listed(here, vm).migrations if each.state in _OPEN]
    if not found:
        complain(f"no migration of {vm} is open here")
        raise typer.Exit(REFUSED)
    request = migration_pb2.AbortMigrationRequest(
        name=found[-1].name, ownership_epoch=found[-1].ownership_epoch, reason=reason, force=True
    )
    return here.call(_stub(here).AbortMigration, request).migration
