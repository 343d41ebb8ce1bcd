"""The command ``fpstated``. A sub-command imports what it needs when it runs: a guest's install has no host in it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, TextIO, cast

import typer

from fpstated import __version__
from fpstated.certs_command import certs

#: What plays a guest, and which write of its program needs the larger container (guest_agent.run, guest_agent.kvm).
Kind = Literal["auto", "kvm", "script"]
Order = Literal["xfd-armed-first", "xcr0-first-with-xfd-0"]

app = typer.Typer(
    help="Guest FPU state that grows on demand: a host agent, guests, a controller, and their failures on purpose.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(certs, name="certs")


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
    missing = [name for name in ("grpc_health", "grpc_reflection") if find_spec(name) is None]
    if missing:
        print(
            f"fpstated {command}: this install is a guest's; a host needs: pip install 'fpstated[host]'",
            file=sys.stderr,
        )
        raise typer.Exit(2)


@app.command()
def host(
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS", help="unix:PATH, or HOST:PORT on loopback with --insecure-tcp.")
    ] = "",
    insecure_tcp: Annotated[
        bool, typer.Option("--insecure-tcp", help="Allow plaintext TCP, on loopback addresses only.")
    ] = False,
    name: Annotated[str, typer.Option(help="The host's name, as every reply carries it.")] = "host",
    profile: Annotated[
        str, typer.Option(help="Processor of VMs that name none: a built-in one, 'native', or @FILE in cpuid -r form.")
    ] = "sapphire-rapids",
    kernel_rules: Annotated[str, typer.Option(help="Kernel of VMs that name none: 6.18 or 6.12.")] = "6.18",
    cpus: Annotated[int, typer.Option(min=1, max=1024, help="Modelled CPUs of each kind of processor.")] = 4,
    byte_limit: Annotated[int | None, typer.Option(min=0, help="Bytes that all containers may take together.")] = None,
    exit_deadline: Annotated[
        float, typer.Option(min=0.001, help="Seconds a controller has before the default action, PAUSE.")
    ] = 30.0,
    faults: Annotated[bool, typer.Option("--faults", help="Let fault points be armed over the wire.")] = False,
    check_invariants: Annotated[
        bool, typer.Option("--check-invariants", help="Check every invariant after every command.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every command to a new FILE; `fpstated replay` reads it.")
    ] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Write lane H as JSON lines to standard output.")
    ] = False,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that streams have to end when the host stops.")] = 5.0,
) -> None:
    """Run a host agent: the process that owns the FPU core."""
    _need_host_extra("host")
    from fpstated.address import default_address
    from fpstated.host_command import run_host
    from fpstated.host_config import ConfigError, host_config

    try:
        config = host_config(
            name=name,
            profile=profile,
            kernel_rules=kernel_rules,
            cpus=cpus,
            byte_limit=byte_limit,
            exit_deadline_s=exit_deadline,
            faults=faults,
            check_invariants=check_invariants,
        )
    except ConfigError as error:
        print(f"fpstated host: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(
        run_host(
            config,
            listen or default_address(),
            insecure_tcp=insecure_tcp,
            record=record,
            timeline=timeline,
            grace_s=grace,
        )
    )


@app.command()
def controller(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The host: unix:PATH or HOST:PORT.")] = "",
    scope: Annotated[str, typer.Option(metavar="VM", help="vms/NAME, or nothing for the whole host.")] = "",
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[vms/NAME=]POLICY",
            help="retry, retry-after:base=0.1,factor=2,tries=5,then=pause, inject-gp, pause, kill-vcpu, kill-vm; "
            "for one VM or for all. May be given several times. Default: by cause.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="The controller's name, as decisions carry it.")] = "controller",
    seed: Annotated[int, typer.Option(help="What jitter is drawn from.")] = 0,
    lease: Annotated[
        float, typer.Option(min=0, help="Seconds the control lease is wished for; 0: the host's own.")
    ] = 0.0,
    timeline: Annotated[bool, typer.Option("--timeline", help="Write JSON lines to standard output.")] = False,
) -> None:
    """Run a controller: it decides what happens after an allocation failure."""
    from fpstated.console import HumanLines
    from vmm_controller.config import ControllerConfig
    from vmm_controller.policy import parse_policies
    from vmm_controller.run import run_controller

    try:
        config = ControllerConfig(
            name=name, scope=scope, lease_s=lease, policies=parse_policies(policy or ()), seed=seed
        )
        out = None if timeline else cast("TextIO", HumanLines())
        status = run_controller(host or _default_address(), config, out=out)
    except ValueError as error:
        print(f"fpstated controller: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(status)


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
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Write lane G as JSON lines to standard output.")
    ] = False,
) -> None:
    """Run one guest against a host: VM, permission and vCPU are made, the guest runs to its end."""
    from fpstated.console import HumanLines
    from guest_agent.kvm import GrowthOrder
    from guest_agent.run import GuestKind, GuestOptions, run_guest

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
