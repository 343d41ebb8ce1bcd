"""A snapshot: the machine as it was after record N, in a file of its own.

    line 1    "fpstated snapshot 1"
    line 2    JSON: n and crc of the record, rules, revision, the machine's digest, classes, lines, lengths of the blobs
    lines     the objects (``host_agent.journal.graph``)
    blobs     one after the other
    32 bytes  SHA-256 of everything before

Written beside, synced, and renamed, so that there is a whole one or none. Loading checks the SHA-256, and then that the
machine has the digest that it had.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from host_agent.digest import digest
from host_agent.journal.directory import sync_directory
from host_agent.journal.errors import JournalError
from host_agent.journal.graph import GraphError, GraphReader, GraphWriter
from host_agent.journal.record import RULES_VERSION
from host_agent.journal.shapes import remake
from host_agent.machine import HostMachine
from host_agent.state import HostState

_MAGIC: Final = b"fpstated snapshot 1\n"
_PREFIX: Final = "snapshot-"
_SHA_BYTES: Final = 32


class SnapshotError(JournalError):
    """A file that is no snapshot of ours, or not as it was written."""


#: What reading a state raises that this release did not write: a register that is no 64-bit number is a struct.error.
_UNREADABLE: Final = (
    GraphError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that was loaded: the machine, and the record it was made after."""

    machine: HostMachine
    n: int
    crc: int


def snapshot_path(directory: Path, n: int) -> Path:
    """The file of the snapshot after record ``n``."""
    return directory / f"{_PREFIX}{n:020}"


def snapshots(directory: Path) -> list[tuple[int, Path]]:
    """(number, file) of every snapshot of a directory, newest first."""
    found = (
        (path.name.removeprefix(_PREFIX), path) for path in directory.glob(f"{_PREFIX}*") if path.suffix != ".part"
    )
    return sorted(((int(number), path) for number, path in found if number.isdecimal()), reverse=True)


def write_snapshot(directory: Path, state: HostState, n: int, crc: int) -> Path:
    """Write the snapshot of a state that all of record ``n`` has made. Raises ``OSError``; then there is none."""
    path = snapshot_path(directory, n)
    # A name of this process: the one that a host left behind when it was killed may still write its own.
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            sha = hashlib.sha256()
            for piece in _pieces(state, n, crc):
                sha.update(piece)
                out.write(piece)
            out.write(sha.digest())
            out.flush()
            os.fsync(out.fileno())
        part.rename(path)
        sync_directory(directory)
    finally:
        part.unlink(missing_ok=True)
    return path


def snapshot_bytes(state: HostState, n: int, crc: int) -> bytes:
    """What ``write_snapshot`` writes. The same state has the same bytes."""
    body = b"".join(_pieces(state, n, crc))
    return body + hashlib.sha256(body).digest()


def _pieces(state: HostState, n: int, crc: int) -> Iterator[bytes]:
    writer = GraphWriter(state)
    lines = list(writer.lines())
    blobs = writer.blobs
    head = {
        "n": n,
        "crc": crc,
        "rules": RULES_VERSION,
        "revision": state.revision,
        "digest": digest(state),
        "classes": writer.classes(),
        "lines": len(lines),
        "blobs": [len(blob) for blob in blobs],
    }
    yield _MAGIC
    yield json.dumps(head, separators=(",", ":")).encode() + b"\n"
    yield from lines
    yield from blobs


def load_snapshot(path: Path) -> Snapshot:
    """Read a snapshot and prove that it is what was written. Raises ``SnapshotError``, ``OSError``."""
    return read_snapshot(path.read_bytes(), str(path))


def read_snapshot(raw: bytes, path: str) -> Snapshot:
    """``load_snapshot`` of bytes that are at hand; ``path`` names them. Raises ``SnapshotError``."""
    body, sha = raw[:-_SHA_BYTES], raw[-_SHA_BYTES:]
    if not raw.startswith(_MAGIC):
        raise SnapshotError(f"{path} is not a snapshot that this release reads")
    if hashlib.sha256(body).digest() != sha:
        raise SnapshotError(f"{path} is damaged: its SHA-256 does not fit")
    try:
        head, state = _read(body)
        remake(state)
        machine = HostMachine.of(state)
        found = machine.digest()
    except _UNREADABLE as error:
        raise SnapshotError(f"{path} cannot be read by this release: {error!r}") from error
    if found != head["digest"]:
        raise SnapshotError(f"{path} leads to a machine with digest {found}, and was made of {head['digest']}")
    return Snapshot(machine, head["n"], head["crc"])


def _read(body: bytes) -> tuple[dict[str, Any], HostState]:
    at = body.index(b"\n", len(_MAGIC)) + 1
    head = json.loads(body[len(_MAGIC) : at])
    entries: list[list[Any]] = []
    for _ in range(head["lines"]):
        end = body.index(b"\n", at) + 1
        entries += json.loads(body[at:end])
        at = end
    blobs = []
    for length in head["blobs"]:
        blobs.append(body[at : at + length])
        at += length
    state = GraphReader(head["classes"], blobs).read(entries)
    if not isinstance(state, HostState):
        raise GraphError(f"object 0 is a {type(state).__name__}")
    return head, state
