"""``fpstated faults``: the fault points there are, and plans: check, show, hash, export; arm and disarm at a host."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fpstated.files import os_problem, read_input, standard_output
from fpstated.sim.shared import Seed

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

faults = typer.Typer(
    help="Fault points and plans: what can be broken on purpose, and how.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

PlanFile = Annotated[
    str, typer.Argument(metavar="PLAN", help="A file, YAML or JSON; the name of a shipped plan; - for standard input.")
]


@contextmanager
def _complaints(command: str, needs: tuple[str, ...] = ("yaml", "numpy")) -> Iterator[None]:
    """What is wrong with a plan: one line a mistake on standard error, and status 2."""
    if any(find_spec(name) is None for name in needs):
        _say(command, "this install is a guest's; this needs: pip install 'fpstated[lab]'")
        raise typer.Exit(2)
    from fault_lab.plan.problem import PlanError

    try:
        with standard_output():
            yield
    except PlanError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    except OSError as error:
        _say(command, os_problem(error))
        raise typer.Exit(2) from None
    except ValueError as error:
        _say(command, str(error))
        raise typer.Exit(2) from None


def _say(command: str, text: str) -> None:
    print(f"fpstated faults {command}: {text}", file=sys.stderr)


def load_named_plan(name: str) -> plan_pb2.Plan:
    """The plan of a file, of a release, or of standard input. Raises ``PlanError``, ``TextError``, ``OSError``."""
    from fault_lab.plan.load import load_plan
    from fault_lab.plans import find_plan

    if name == "-":
        return load_plan(read_input(Path(name)), "stdin")
    path = find_plan(name)
    return load_plan(read_input(path), name if Path(name).exists() else path.name)


@faults.command("list")
def list_points(
    as_json: Annotated[bool, typer.Option("--json", help="For machines: everything that is known of each.")] = False,
) -> None:
    """List the fault points: what each fails with, and who deals with it."""
    from fault_lab.injection.points import FAULT_POINTS, points_as_json

    with _complaints("list", needs=()):
        if as_json:
            print(json.dumps(points_as_json(), indent=2))
            return
        rows = points_as_json()
        width = max(map(len, FAULT_POINTS))
        for row in rows:
            fails = ", ".join(map(str, row["errnos"])) if row["errnos"] else str(row["error"]).lower()  # type: ignore[call-overload]
            print(f"{row['name']:<{width}}  {row['seat']:<5}  {fails:<16}  {row['caller']}")


@faults.command()
def check(plan: PlanFile) -> None:
    """Check a plan: every mistake with its line, then what could never fire. Status 2 for a mistake."""
    with _complaints("check"):
        from fault_lab.plan.canonical import plan_hash
        from fault_lab.plan.warnings import warnings
        from fault_lab.sim.run import unknown_checks

        loaded = load_named_plan(plan)
        unknown = unknown_checks(loaded)
        if unknown:
            raise ValueError("\n".join(unknown))
        for problem in warnings(loaded):
            print(f"warning: {problem.text(plan)}", file=sys.stderr)
        print(f"{loaded.name}: {len(loaded.faults)} faults, sha256 {plan_hash(loaded)}")


@faults.command()
def show(
    plan: PlanFile,
    canonical: Annotated[bool, typer.Option("--canonical", help="The text that the hash is made of.")] = False,
) -> None:
    """Show a plan as JSON: short forms written out, comments gone."""
    with _complaints("show"):
        from fault_lab.plan.canonical import canonical_json, readable_json

        loaded = load_named_plan(plan)
        print(canonical_json(loaded) if canonical else readable_json(loaded), end="")


@faults.command("hash")
def hash_(plan: PlanFile) -> None:
    """Print the SHA-256 of a plan's canonical text."""
    with _complaints("hash"):
        from fault_lab.plan.canonical import plan_hash

        print(plan_hash(load_named_plan(plan)))


@faults.command()
def schema() -> None:
    """Print the JSON Schema of plan files, for editors."""
    with _complaints("schema"):
        from fault_lab.plan.schema import json_schema

        print(json_schema(), end="")


@faults.command()
def plans() -> None:
    """List the plans that come with this release."""
    with _complaints("plans"):
        from fault_lab.plan.load import load_plan
        from fault_lab.plans import shipped_plans

        for name, path in shipped_plans().items():
            print(f"{name:<22}  {load_plan(path.read_text(encoding='utf-8'), path.name).description}")


@faults.command()
def export(
    plan: PlanFile,
    linux: Annotated[bool, typer.Option("--linux", help="A shell script for a Linux kernel.")] = False,
    failcmd: Annotated[bool, typer.Option("--failcmd", help="Calls of the kernel's own failcmd.sh.")] = False,
    fault: Annotated[str, typer.Option(metavar="NAME", help="This fault alone.")] = "",
) -> None:
    """Write a plan's faults for something else. What cannot be had there is a warning on standard error."""
    with _complaints("export"):
        if not linux:
            raise ValueError("expected --linux, the one target there is")
        from fault_lab.linux_export import export_linux

        made = export_linux(load_named_plan(plan), only=fault)
        for text in made.warnings:
            print(f"warning: {text}", file=sys.stderr)
        print(made.script(failcmd=failcmd), end="")
        if not made.faults:
            raise ValueError("nothing of this plan can be had on a kernel")


HostAddress = Annotated[
    str, typer.Option(metavar="ADDRESS", help="The host, unix:PATH or HOST:PORT, started with --faults.")
]


@faults.command()
def arm(
    plan: PlanFile,
    host: HostAddress = "",
    lease: Annotated[
        float,
        typer.Option(metavar="S", help="Seconds; renewed until Ctrl-C. 0: armed for good, and this ends at once."),
    ] = 10.0,
    seed: Seed = None,
    phase: Annotated[str, typer.Option(help="Whose faults: warm, chaos, heal or settle.")] = "chaos",
) -> None:
    """Arm a plan's faults at a live host's own points. When this ends, or dies, they are gone with their leases."""
    with _complaints("arm"):
        from fault_lab.live.arming import arm as arm_there
        from fault_lab.live.arming import hold, stopped_by_signal
        from fault_lab.plan.resolve import PHASES

        if phase not in PHASES:
            raise ValueError(f"--phase: expected one of {', '.join(PHASES)}, got {phase!r}")
        if lease and not 0.1 <= lease <= 86_400:
            raise ValueError(f"--lease: expected 0, or 0.1 to 86,400 seconds, got {lease:g}")
        loaded, address = load_named_plan(plan), host or _default_address()
        armed, left = arm_there(loaded, address, seed, phase=phase, lease_s=lease)
        for name in left:
            print(f"not armed: {name}: of another phase, or of a point that `fpstated live run` has", file=sys.stderr)
        for name, there in armed.items():
            print(f"{name}: {there}", flush=True)
        if not lease or not armed:
            return
        with stopped_by_signal() as stop:
            hold(address, loaded.name, lease_s=lease, until=stop)


@faults.command()
def disarm(plan: PlanFile, host: HostAddress = "") -> None:
    """Disarm what `arm` of the same plan has armed, whoever did it."""
    with _complaints("disarm"):
        from fault_lab.live.arming import disarmed

        print(f"{disarmed(host or _default_address(), load_named_plan(plan).name)} faults disarmed")


@faults.command()
def halt(host: HostAddress = "") -> None:
    """Disarm every fault of a live host, whoever armed it."""
    with _complaints("halt"):
        from fault_lab.live.arming import disarmed

        print(f"{disarmed(host or _default_address())} faults disarmed")


def _default_address() -> str:
    from fpstated.address import default_address

    return default_address()
