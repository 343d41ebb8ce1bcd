"""What the commands of ``fpstated sim`` share: their statuses, what they say when something is wrong, plans by name."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fpstated.files import TextError, os_problem, read_input, standard_output

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.pictures.recording import Recording

#: All is well; a check does not hold (or a replay went another way); nothing can be said or the words are wrong; the
#: simulator itself is wrong.
OK: Final = 0
VIOLATION: Final = 1
UNKNOWN: Final = 2
BROKEN: Final = 3
#: By Ctrl-C, as a shell has it.
INTERRUPTED: Final = 130

_SEED_MAX: Final = 2**64 - 1


class UsageError(ValueError):
    """Words that cannot be right."""


def checked_seed(value: int | None) -> int | None:
    """A seed that a plan can have. For options of another meaning than ``Seed``."""
    if value is not None and not 0 <= value <= _SEED_MAX:
        raise typer.BadParameter(f"expected 0 to {_SEED_MAX}, got {value}")
    return value


#: The one seed of a command; None: the plan's own.
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", callback=checked_seed, help="The seed; the plan's own where none is given."),
]


@contextmanager
def complaints(command: str, group: str = "sim", machine: str = "the simulator") -> Iterator[None]:
    """What is wrong with a plan or the words is status 2, with the simulator, or what else runs plans, 3."""
    if find_spec("yaml") is None or find_spec("numpy") is None:
        say(command, group, "this install is a guest's; this needs: pip install 'fpstated[lab]'")
        raise typer.Exit(UNKNOWN)
    from fault_lab.plan.problem import PlanError

    try:
        with standard_output():
            yield
    except typer.Exit:
        raise
    except PlanError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(UNKNOWN) from None
    except (UsageError, TextError) as error:
        say(command, group, str(error))
        raise typer.Exit(UNKNOWN) from None
    except OSError as error:
        say(command, group, os_problem(error))
        raise typer.Exit(UNKNOWN) from None
    except KeyboardInterrupt:
        say(command, group, "interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except Exception:  # noqa: BLE001 -- whatever it is: a run that breaks has found nothing
        traceback.print_exc()
        say(command, group, f"a bug of {machine}, see above")
        raise typer.Exit(BROKEN) from None


def say(command: str, group: str, text: str) -> None:
    """A line on standard error."""
    print(f"fpstated {group} {command}: {text}", file=sys.stderr)


@contextmanager
def recording(file: Path) -> Iterator[Recording]:
    """A recorded run to be drawn; what cannot be drawn is named with its file."""
    from fault_lab.pictures.recording import PictureError, read_recording

    try:
        yield read_recording(read_input(file))
    except PictureError as error:
        raise UsageError(f"{file}: {error}") from error


def sim_command() -> str:
    """How ``fpstated sim`` was called, for whoever repeats it: the broken version belongs to it."""
    from fault_lab.broken.versions import what_is_broken

    broken = what_is_broken()
    return f"fpstated sim --broken {broken}" if broken else "fpstated sim"


def loaded_plan(name: str) -> plan_pb2.Plan:
    """A plan whose checks are all known."""
    from fault_lab.sim.run import unknown_checks
    from fpstated.faults_command import load_named_plan

    loaded = load_named_plan(name)
    complaints = unknown_checks(loaded)
    if complaints:
        raise UsageError("\n".join(complaints))
    return loaded
