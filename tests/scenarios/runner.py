"""Running a scenario file: commands to handlers, output beside what was expected, and the replay at the end."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from host_agent.errors import Refused
from tests.scenarios import (
    controller_commands,
    cpuid_commands,
    guest_commands,
    host_commands,
    life_commands,
    migration_commands,
    session_commands,
    show,
    state_commands,
    task_commands,
)
from tests.scenarios.block import Block, Command, ScenarioError, format_blocks, parse_blocks
from tests.scenarios.each import each
from tests.scenarios.operands import Words
from tests.scenarios.world import World, refusal

#: Every command by its word.
COMMANDS: Final[dict[str, Callable[[World, Words], None]]] = {
    "create-vm": host_commands.create_vm,
    "delete-vm": host_commands.delete_vm,
    "reset-vm": host_commands.reset_vm,
    "permit": host_commands.permit,
    "cpuid": cpuid_commands.cpuid,
    "supported-cpuid": cpuid_commands.supported_cpuid,
    "create-vcpu": host_commands.create_vcpu,
    "delete-vcpu": host_commands.delete_vcpu,
    "fail-allocation": host_commands.fail_allocation,
    "limit": host_commands.limit,
    "advance": host_commands.advance,
    "preempt-at": host_commands.preempt_at,
    "trace": host_commands.trace,
    "replay": host_commands.replay,
    "task": task_commands.task,
    "take-turns": task_commands.take_turns,
    "cpu": life_commands.cpu,
    "suspend": life_commands.suspend,
    "session": session_commands.session,
    "keep-alive": session_commands.keep_alive,
    "close-session": session_commands.close_session,
    "guest": guest_commands.guest,
    "get-xsave": state_commands.get_xsave_command,
    "set-xsave": state_commands.set_xsave_command,
    "edit": state_commands.edit,
    "get-xcrs": state_commands.get_xcrs_command,
    "set-xcrs": state_commands.set_xcrs_command,
    "get-msrs": state_commands.get_msrs_command,
    "set-msrs": state_commands.set_msrs_command,
    "msr-index-list": state_commands.msr_index_list_command,
    "required-size": state_commands.required_size_command,
    "save-restore": state_commands.save_restore,
    "controller": controller_commands.controller,
    "decide": controller_commands.decide,
    "on": migration_commands.on,
    "migrate": migration_commands.migrate,
    "show": show.show,
}


#: Where the files are, and every one of them: ours by their numbers, then those of each foreign suite in its folder.
FOLDER: Final = Path(__file__).parent
FILES: Final = tuple(sorted(FOLDER.rglob("*.txt"), key=lambda path: (path.parent != FOLDER, path)))


def name_of(path: Path) -> str:
    """A file's name as a test has it: ``07-example``, ``kvm-unit-tests/xsave/01-example``."""
    return path.relative_to(FOLDER).with_suffix("").as_posix() if path.is_relative_to(FOLDER) else path.stem


def run(text: str, *, policy: str = "on_swap") -> str:
    """Run a scenario and return the file as it would be with what was printed.

    ``policy`` is the allocation policy of the VMs for which the file names none.

    Raises ``ScenarioError`` for a file that cannot be run, and for a log whose replay does not reach the same digest.
    A violated invariant raises the core's own ``CoreBug``: no file can expect one.
    """
    blocks = parse_blocks(text)
    world = World(policy)
    outputs = [_run_block(world, block) for block in blocks]
    if world.planned is not None:
        raise ScenarioError("a preemption was planned and never happened")
    world.replay()
    return format_blocks(blocks, outputs)


def _run_block(world: World, block: Block) -> tuple[str, ...]:
    for command in block.commands:
        try:
            run_command(world, command)
        except ScenarioError as error:
            raise ScenarioError(f"line {command.line}: {command.text}: {error}") from error
    return world.lanes.take()


def run_command(world: World, command: Command) -> None:
    """Carry out one command; what it prints stands in the world's lanes, a refusal too."""
    words = Words(command.text)
    if words.name == "each":
        each(world.lanes, command.text, lambda text: run_command(world, Command(text, command.line)))
        return
    handler = COMMANDS.get(words.name)
    if handler is None:
        raise ScenarioError(f"expected one of {', '.join(COMMANDS)}, each")
    try:
        handler(world, words)
    except Refused as refused:
        world.lanes.user(refusal(world, refused))
        world.tell_effects()
    finally:
        world.acting_task = None


def difference(path: Path, expected: str, printed: str, *, rewrite: str = "") -> str:
    """A unified diff, and what to do about it; ``rewrite`` are the tests that write the file anew."""
    diff = difflib.unified_diff(expected.splitlines(), printed.splitlines(), "expected", "printed", n=6, lineterm="")
    tests = rewrite or f"tests/test_scenarios.py -k {name_of(path)}"
    command = f".venv/bin/python -m pytest {tests} --rewrite"
    return "\n".join([f"{path.name} prints something else:", "", *diff, "", f"if that is right: {command}"])
