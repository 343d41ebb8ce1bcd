"""The command ``fpstated``. A sub-command imports what it needs when it runs: a guest's install has no host in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TextIO, cast

import typer
from typer.core import TyperGroup

from fpstated import __version__
from fpstated.config.command import settings_command
from fpstated.config.show import print_config
from fpstated.config.sources import Settings, read_settings
from fpstated.config.tables import CONTROLLER, HOST, TABLES
from fpstated.proxy_command import proxy

#: What plays a guest, and which write of its program needs the larger container (guest_agent.run, guest_agent.kvm).
Kind = Literal["auto", "kvm", "script"]
Order = Literal["xfd-armed-first", "xcr0-first-with-xfd-0"]

#: Commands that have others below them.
_GROUPS: Final = ("campaign", "certs", "ctl", "faults", "journal", "live", "sim")


def _group(name: str) -> typer.Typer:
    """Load one of them: when it is called, or when all are shown."""
    match name:
        case "campaign":
            from fpstated.campaign_command import campaign as group
        case "certs":
            from fpstated.certs_command import certs as group
        case "ctl":
            from fpstated.ctl.app import ctl as group
        case "faults":
            from fpstated.faults_command import faults as group
        case "journal":
            from fpstated.journal_cli import journal as group
        case "live":
            from fpstated.live.app import live as group
        case _:
            from fpstated.sim.app import sim as group
    return group


class _Root(TyperGroup):
    """A guest is started in a fifth of the time that it takes to load what every command needs."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 -- typer's own types
        """Groups first."""
        return [*_GROUPS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        """Load a group when it is asked for."""
        if cmd_name not in _GROUPS:
            return super().get_command(ctx, cmd_name)
        group = typer.main.get_command(_group(cmd_name))
        group.name = cmd_name
        return group


app = typer.Typer(
    cls=_Root,
    help="Guest FPU state that grows on demand: a host agent, guests, a controller, and their failures on purpose.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("proxy")(proxy)


def _version(show: bool) -> None:
    if show:
        print(f"fpstated {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _need_host_extra(command: str) -> None:
    """A host needs more than the base install; say so in words instead of a traceback."""
    missing = [name for name in ("apsw", "grpc_channelz", "grpc_health", "grpc_reflection") if find_spec(name) is None]
    if missing:
        print(
            f"fpstated {command}: this install is a guest's; a host needs: pip install 'fpstated[host]'",
            file=sys.stderr,
        )
        raise typer.Exit(2)


def _host(flags: dict[str, object], config: Path | None, show: bool) -> None:
    _need_host_extra("host")
    from fpstated.address import default_address
    from fpstated.host_command import run_host
    from fpstated.host_config import host_run

    with _complaints("host"):
        settings = read_settings(HOST, flags, config=config, others=TABLES)
        run = host_run(settings, default_address())
    raise typer.Exit(_shown(settings) if show else run_host(run))


def _controller(flags: dict[str, object], config: Path | None, show: bool) -> None:
    from fpstated.controller_command import controller_run, run

    with _complaints("controller"):
        settings = read_settings(CONTROLLER, flags, config=config, others=TABLES)
        parsed = controller_run(settings, _default_address())
    raise typer.Exit(_shown(settings) if show else run(parsed))


app.command("host")(settings_command(HOST, _host, "Run a host agent: the process that owns the FPU core."))
app.command("controller")(
    settings_command(CONTROLLER, _controller, "Run a controller: it decides what happens after an allocation failure.")
)


@contextmanager
def _complaints(command: str) -> Iterator[None]:
    """A setting that cannot be right is one line on standard error, and status 2."""
    try:
        yield
    except ValueError as error:
        print(f"fpstated {command}: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _shown(settings: Settings) -> int:
    print(print_config(settings), end="")
    return 0


@app.command()
def guest(
    vm: Annotated[str, typer.Option(metavar="ID", help="The VM's id; made if there is none.")],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The host: unix:PATH or HOST:PORT.")] = "",
    index: Annotated[int, typer.Option(min=0, help="The vCPU's index; made if there is none.")] = 0,
    kind: Annotated[
        Kind, typer.Option(help="Real code under /dev/kvm, a script, or (auto) real where that is possible.")
    ] = "auto",
    order: Annotated[
        Order, typer.Option(help="Which write grows the container: XFD in the #NM handler, or XCR0 with XFD clear.")
    ] = "xfd-armed-first",
    script: Annotated[Path | None, typer.Option(metavar="FILE", help="A script of your own to play.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bytes a real guest puts through its tiles.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often a real guest does so.")] = 1,
    profile: Annotated[str, typer.Option(help="The VM's processor.")] = "sapphire-rapids",
    byte_limit: Annotated[int | None, typer.Option(min=0, help="Bytes that the VM's containers may take.")] = None,
    no_permission: Annotated[
        bool, typer.Option("--no-permission", help="Do not ask for the permission to use AMX in guests.")
    ] = False,
    lease: Annotated[float | None, typer.Option(min=0.1, help="Seconds the session's lease is wished for.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a host that is not there yet.")] = 10.0,
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM file: the guest's certificate, with --tls-key and --tls-ca."),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM file: its key.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM file: the CA of the host's certificate.")
    ] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Write lane G as JSON lines to standard output.")
    ] = False,
) -> None:
    """Run one guest against a host: VM, permission and vCPU are made, the guest runs to its end."""
    from fpstated.console import HumanLines
    from fpstated.link.tls import client_tls
    from guest_agent.kvm import GrowthOrder
    from guest_agent.run import GuestKind, GuestOptions, run_guest

    with _complaints("guest"):
        tls = client_tls(tls_cert, tls_key, tls_ca)
    options = GuestOptions(
        host=host or _default_address(),
        vm=vm,
        index=index,
        kind=GuestKind(kind),
        order=GrowthOrder(order),
        script=script,
        seed=seed,
        rounds=rounds,
        profile=profile,
        byte_limit=byte_limit,
        permission=not no_permission,
        lease_s=lease,
        wait_s=wait,
        timeline=True,
        tls=tls,
    )
    raise typer.Exit(run_guest(options, None if timeline else cast("TextIO", HumanLines())))


@app.command()
def demo(
    guests: Annotated[
        Kind, typer.Option(help="Real KVM guests, scripted ones, or (auto) real ones where /dev/kvm is usable.")
    ] = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every save and restore as well.")] = False,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the host's command log to a new FILE.")
    ] = None,
) -> None:
    """Run the main job: a host, a controller and three guests as processes, and one timeline of what they do."""
    _need_host_extra("demo")
    from fpstated.demo import run_demo

    raise typer.Exit(run_demo(guests, verbose=verbose, record=record))


@app.command()
def replay(
    log: Annotated[
        Path, typer.Argument(help="A log that `fpstated host --record` wrote.", exists=True, dir_okay=False)
    ],
    digest: Annotated[str, typer.Option(help="The digest that must come out; status 1 if another does.")] = "",
) -> None:
    """Carry a recorded command log out again and print the digest of the host it leads to."""
    from host_agent.log import LogError, read_log
    from host_agent.log import replay as replay_log

    try:
        with log.open(encoding="utf-8") as lines:
            config, records = read_log(lines)
    except LogError as error:
        print(f"fpstated replay: {log}: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    found = replay_log(config, records).digest()
    print(f"replay: {len(records)} commands, digest {found}")
    if digest and digest != found:
        print(f"fpstated replay: expected {digest}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def cpuid(
    profile: Annotated[str, typer.Argument(help="A built-in profile; nothing for the running processor.")] = "",
) -> None:
    """Print a processor's CPUID leaves in cpuid -r form, ready for --profile @FILE."""
    from fpstated.native_cpuid import NoCpuidError, native_profile
    from fpu_core.cpuid import builtin_profile, format_cpuid_dump
    from fpu_core.errors import FieldError

    try:
        found = builtin_profile(profile) if profile else native_profile()
    except (NoCpuidError, FieldError) as error:
        print(f"fpstated cpuid: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(format_cpuid_dump(found), end="")


@app.command("compare-policies")
def compare_policies(
    script: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A guest's script; without one, the built-in mix of guests.")
    ] = None,
    mix: Annotated[bool, typer.Option("--mix", help="The built-in mix of guests, which is the default.")] = False,
    profile: Annotated[str, typer.Option(help="The guests' processor, a built-in one.")] = "sapphire-rapids",
    fail: Annotated[int, typer.Option(metavar="NTH", min=1, help="Which allocation of a guest fails, once.")] = 2,
    json_to: Annotated[str, typer.Option("--json", metavar="FILE|-", help="Write the figures as JSON.")] = "",
    svg_to: Annotated[str, typer.Option("--svg", metavar="FILE", help="Draw them.")] = "",
) -> None:
    """Run the same guests under all four allocation policies and count what each costs."""
    _need_host_extra("compare-policies")
    from fpstated.compare_command import CompareOptions, run_compare

    if mix and script is not None:
        print("fpstated compare-policies: expected --script or --mix, got both", file=sys.stderr)
        raise typer.Exit(2)
    raise typer.Exit(run_compare(CompareOptions(script, profile, fail, json_to, svg_to)))


def _default_address() -> str:
    from fpstated.address import default_address

    return default_address()


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
