r"""The image of a VM as a file: what ExportVm streams, in one piece that ImportVm can be given again.

8 bytes   `FPSTVM\x00\x01`: what it is, and the version of this form
4 bytes   little-endian: the size of the header
...       the header: VmImageHeader as protobuf, with size and SHA-256 of what follows
...       the image
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from fpstate.v1 import migration_pb2
from google.protobuf.message import DecodeError

_MAGIC: Final = b"FPSTVM\x00\x01"
_HEADER_MAX: Final = 1 << 24
#: Bytes of one message to the host.
CHUNK_BYTES: Final = 256 * 1024


class ImageFileError(Exception):
    """A file that is no image, or not all of one."""


def write_image(
    path: Path,
    header: migration_pb2.VmImageHeader,
    chunks: Iterable[migration_pb2.VmImageChunk],
    step: Callable[[int], None],
) -> None:
    """Write an image as it comes; the file has its name when it is whole and on the disk, and not before.

    Raises ImageFileError for chunks that do not fit the header, and OSError.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("xb") as file:
            raw = header.SerializeToString()
            file.write(_MAGIC + len(raw).to_bytes(4, "little") + raw)
            for data, done in _checked(header, ((chunk.offset, chunk.data) for chunk in chunks)):
                file.write(data)
                step(done)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except FileExistsError as error:
        raise ImageFileError(f"{part} is there: another export, or what one left behind") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_header(path: Path) -> migration_pb2.VmImageHeader:
    """What a file says of its image. Raises ImageFileError and OSError."""
    with path.open("rb") as file:
        start = file.read(len(_MAGIC) + 4)
        size = int.from_bytes(start[len(_MAGIC) :], "little")
        if not start.startswith(_MAGIC) or len(start) < len(_MAGIC) + 4 or size > _HEADER_MAX:
            raise ImageFileError(f"{path} is no image of a VM that `fpstated ctl export` has written")
        try:
            return migration_pb2.VmImageHeader.FromString(file.read(size))
        except DecodeError as error:
            raise ImageFileError(f"{path}: the header cannot be read") from error


def read_chunks(
    path: Path, header: migration_pb2.VmImageHeader, step: Callable[[int], None]
) -> Iterator[migration_pb2.VmImageChunk]:
    """The image of a file, checked against its header as it goes. Raises ImageFileError and OSError."""
    with path.open("rb") as file:
        file.seek(len(_MAGIC) + 4 + header.ByteSize())
        for data, done in _checked(header, _pieces(iter(lambda: file.read(CHUNK_BYTES), b""))):
            yield migration_pb2.VmImageChunk(offset=done - len(data), data=data)
            step(done)


def _pieces(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    offset = 0
    for piece in pieces:
        yield offset, piece
        offset += len(piece)


def _checked(header: migration_pb2.VmImageHeader, pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[bytes, int]]:
    """Each piece and how much there is with it, until the whole has come. Raises ImageFileError."""
    digest, done = hashlib.sha256(), 0
    for offset, data in pieces:
        if offset != done:
            raise ImageFileError(f"the image goes on at byte {offset:,}, and byte {done:,} was expected")
        digest.update(data)
        done += len(data)
        if done == header.size_bytes and digest.digest() != header.sha256:
            raise ImageFileError("the SHA-256 of the image is not the one in its header")
        yield data, done
    if done != header.size_bytes:
        raise ImageFileError(f"the image has {done:,} bytes, and its header says {header.size_bytes:,}")
