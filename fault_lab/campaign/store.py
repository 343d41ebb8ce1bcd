"""A campaign's directory: what it is to do, the blocks that are done, one line each, and a plan for each failure.

    campaign.json               the outline
    blocks.jsonl                a line a block that is done, durable before the next one counts
    failures/SIGNATURE.json     the plan of the first failure of a signature
    failures/SIGNATURE.shrunk.json
                                the same made small

A line that was not finished is taken off when the campaign goes on: its block is done again, with the same outcome.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.campaign.block import Block, Failure
from fault_lab.campaign.outline import Outline, OutlineError
from fault_lab.plan.canonical import readable_json
from host_agent.journal.directory import sync_directory

_OUTLINE: Final = "campaign.json"
_BLOCKS: Final = "blocks.jsonl"


class StoreError(ValueError):
    """A directory that holds no campaign, another one, or one that is being run."""


class Store:
    """The directory. What is wrong with it is a ``StoreError`` that names the file."""

    def __init__(self, directory: Path, outline: Outline) -> None:
        self.directory = directory
        self.outline = outline
        self.failures = directory / "failures"

    @classmethod
    def create(cls, directory: Path, outline: Outline) -> Store:
        """A new one, in a directory that is empty or not there."""
        if directory.exists() and any(directory.iterdir()):
            raise StoreError(f"{directory}: expected an empty directory; `fpstated campaign resume` goes on with one")
        (directory / "failures").mkdir(parents=True)
        _durable(directory / _OUTLINE, json.dumps(outline.to_json(), indent=1) + "\n")
        (directory / _BLOCKS).touch()
        return cls(directory, outline)

    @classmethod
    def open(cls, directory: Path) -> Store:
        """One that is there."""
        path = directory / _OUTLINE
        try:
            return cls(directory, Outline.from_json(json.loads(path.read_text(encoding="utf-8"))))
        except FileNotFoundError:
            raise StoreError(f"{directory}: expected a campaign, there is no {_OUTLINE}") from None
        except (OutlineError, ValueError, AttributeError) as error:
            raise StoreError(f"{path}: {error}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else runs this campaign meanwhile."""
        with (self.directory / _OUTLINE).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"{self.directory}: somebody is running this campaign") from None
            yield

    def blocks(self) -> list[Block]:
        """The blocks that are done, in the order in which they were. What is behind the last whole line is not read."""
        found: dict[int, Block] = {}
        text = (self.directory / _BLOCKS).read_bytes()
        for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), 1):
            try:
                block = _block(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{self.directory / _BLOCKS}: line {number}: expected a block: {error!r}") from error
            found.setdefault(block.nr, block)
        return list(found.values())

    def mend(self) -> None:
        """Take off a line that was begun and not finished."""
        with (self.directory / _BLOCKS).open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)

    def add(self, block: Block) -> None:
        """Keep a block, and the plan of each failure that is the first of its kind. It is durable on return."""
        for failure in block.failures:
            path = self.plan_of(failure.signature)
            if not path.exists():
                _durable(path, readable_json(plan_pb2.Plan.FromString(failure.plan)))
        with (self.directory / _BLOCKS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_line(block)) + "\n")
            file.flush()
            os.fdatasync(file.fileno())

    def add_shrunk(self, signature: str, plan: plan_pb2.Plan) -> None:
        """Keep what a failure was shrunk to."""
        _durable(self.shrunk_of(signature), readable_json(plan))

    def plan_of(self, signature: str) -> Path:
        """Where the plan of a failure is."""
        return self.failures / f"{signature}.json"

    def shrunk_of(self, signature: str) -> Path:
        """Where the small plan of a failure is, once there is one."""
        return self.failures / f"{signature}.shrunk.json"


def _durable(path: Path, text: str) -> None:
    """The whole file or none."""
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    sync_directory(path.parent)


def _line(block: Block) -> dict[str, Any]:
    line = asdict(block) | {"seen": sorted(block.seen)}
    for failure in line["failures"]:
        failure["plan"] = base64.b64encode(failure["plan"]).decode()
    return line


def _block(line: dict[str, Any]) -> Block:
    failures = tuple(
        Failure(**{**each, "plan": base64.b64decode(each["plan"]), "faults": tuple(each["faults"])})
        for each in line["failures"]
    )
    return Block(**{**line, "seen": frozenset(line["seen"]), "failures": failures})
