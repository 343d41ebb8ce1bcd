"""What a failure leaves: a file with the inputs of its block, the way to repeat it, and the fewest inputs that do.

The ids of sessions and controls are other ones in each history, and equally long: those that the file's history made
are exchanged for those of the new one, the first for the first. Its inputs go one after the other then, which a failure
that needs two at once does not survive; the command with the seed does the whole run again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from host_agent.journal.errors import JournalError
from tests.fuzz.block import Block, Findings
from tests.fuzz.inputs import Input
from tests.fuzz.vocabulary import HOSTS_OWN, Vocabulary
from tests.live.healthy import healthy_outcomes
from tests.live.host import LiveHost

#: How long making a failure smaller may take, in seconds.
SHRINK_S = 120.0
MakeHost = Callable[[], LiveHost]


def write_failure(path: Path, block: Block, inputs: Sequence[Input]) -> None:
    """Write inputs down, with the ids that they may hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [each.decode() for each in block.vocabulary.ids]
    path.write_text(json.dumps({"ids": ids, "inputs": [each.to_json() for each in inputs]}, indent=1) + "\n")


def read_failure(path: Path) -> tuple[list[bytes], list[Input]]:
    """Read such a file: the ids, the inputs."""
    found = json.loads(path.read_text())
    return [each.encode() for each in found["ids"]], [Input.from_json(each) for each in found["inputs"]]


def repeat(make_host: MakeHost, ids: Sequence[bytes], inputs: Sequence[Input]) -> Findings:
    """Send inputs to a new host, behind a tour, and say what is found."""
    with make_host() as host:
        reference, fds = healthy_outcomes(host), host.figures().fds
        block = Block(host, "again", reference)

        async def send() -> None:
            await block.tour()
            await block.replay([translated(each, ids, block.vocabulary) for each in inputs])
            if host.alive:
                await block.tidy()

        asyncio.run(send())
        block.check(fds)
        return block.findings


def translated(sent: Input, ids: Sequence[bytes], vocabulary: Vocabulary) -> Input:
    """An input with this history's ids in the places of those of another."""
    here = dict(zip(ids, vocabulary.ids, strict=False))
    messages = tuple(HOSTS_OWN.sub(lambda found: here.get(found[0], found[0]), message) for message in sent.messages)
    return Input(sent.role, sent.path, messages, sent.ending, sent.reads)


def shrunk(make_host: MakeHost, ids: Sequence[bytes], inputs: list[Input]) -> list[Input]:
    """Leave inputs out, ever smaller parts of them, as long as what is left fails and there is time."""
    until = time.monotonic() + SHRINK_S
    if not _fails(make_host, ids, inputs):
        return inputs
    size = len(inputs) // 2
    while size:
        at = 0
        while at < len(inputs) and time.monotonic() < until:
            left = inputs[:at] + inputs[at + size :]
            if left and _fails(make_host, ids, left):
                inputs = left
            else:
                at += size
        size //= 2
    return inputs


def _fails(make_host: MakeHost, ids: Sequence[bytes], inputs: Sequence[Input]) -> bool:
    try:
        return bool(repeat(make_host, ids, inputs))
    except (OSError, JournalError):
        return True
