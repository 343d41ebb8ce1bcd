"""The file of an image: whole or not at all, and what is wrong with one is said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from fpstate.v1 import migration_pb2

from fpstated.ctl.image_file import CHUNK_BYTES, ImageFileError, read_chunks, read_header, write_image

IMAGE = bytes(range(256)) * 3000
HEADER = migration_pb2.VmImageHeader(
    format_version=1, vm="vms/a", size_bytes=len(IMAGE), sha256=hashlib.sha256(IMAGE).digest()
)


def chunks(image: bytes = IMAGE, *, shift: int = 0) -> list[migration_pb2.VmImageChunk]:
    """An image as ExportVm sends it; `shift` moves the offsets behind the first chunk."""
    return [
        migration_pb2.VmImageChunk(offset=at + (shift if at else 0), data=image[at : at + 100_000])
        for at in range(0, len(image), 100_000)
    ]


def test_a_file_is_what_was_sent(tmp_path: Path) -> None:
    """Header and bytes come back, in chunks of our own size; progress counts bytes up to all of them."""
    path, steps = tmp_path / "a.fpstvm", list[int]()
    write_image(path, HEADER, chunks(), steps.append)
    assert steps == [min(at + 100_000, len(IMAGE)) for at in range(0, len(IMAGE), 100_000)]
    assert read_header(path) == HEADER
    back = list(read_chunks(path, HEADER, lambda _done: None))
    assert b"".join(chunk.data for chunk in back) == IMAGE
    assert [chunk.offset for chunk in back] == list(range(0, len(IMAGE), CHUNK_BYTES))
    assert [each.name for each in tmp_path.iterdir()] == ["a.fpstvm"]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (chunks(IMAGE[:-1]), "has 767,999 bytes, and its header says 768,000"),
        (chunks(IMAGE[:-1] + b"x"), "SHA-256"),
        (chunks(shift=5), "goes on at byte 100,005, and byte 100,000 was expected"),
        ([], "has 0 bytes"),
    ],
    ids=["short", "changed", "a gap", "nothing"],
)
def test_an_image_that_is_not_whole_leaves_no_file(
    tmp_path: Path, sent: list[migration_pb2.VmImageChunk], said: str
) -> None:
    """Neither under its name nor under another."""
    with pytest.raises(ImageFileError, match=said):
        write_image(tmp_path / "a.fpstvm", HEADER, sent, lambda _done: None)
    assert list(tmp_path.iterdir()) == []


def test_an_export_beside_another(tmp_path: Path) -> None:
    """What the other is writing stays."""
    (tmp_path / "a.part").write_text("half")
    with pytest.raises(ImageFileError, match=r"a\.part is there"):
        write_image(tmp_path / "a", HEADER, chunks(), lambda _done: None)
    assert (tmp_path / "a.part").read_text() == "half"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda _raw: b"", "is no image"),
        (lambda raw: b"x" + raw[1:], "is no image"),
        (lambda raw: raw[:8] + b"\xff\xff\xff\xff" + raw[12:], "is no image"),
        (lambda raw: raw[:-1], "767,999 bytes"),
        (lambda raw: raw + b"x", "768,001 bytes"),
        (lambda raw: raw[:-1] + b"x", "SHA-256"),
        (lambda raw: raw[:12] + b"\xff" * (len(raw) - 12), "cannot be read"),
    ],
    ids=["empty", "another file", "a long header", "cut off", "longer", "changed", "no header"],
)
def test_a_file_that_is_no_image(tmp_path: Path, spoil: Callable[[bytes], bytes], said: str) -> None:
    """It is read no further than where that is seen."""
    path = tmp_path / "a"
    write_image(path, HEADER, chunks(), lambda _done: None)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ImageFileError, match=said):
        list(read_chunks(path, read_header(path), lambda _done: None))
