"""An image as it comes in: a start, then chunks in order without gaps, of the size and digest that were announced."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from fpstate.v1 import migration_pb2

from host_agent.compat import FORMAT_VERSIONS
from host_agent.image_form import IMAGE_BYTES_MAX
from host_agent.migration_commands import ImportVm
from host_agent.service.errors import Failure, field_invalid
from host_agent.service.translate.fields import migration_name, request_id, vm_name
from host_agent.service.translate.migration import CHUNK_BYTES_MAX

_SHA_BYTES = 32


async def read_import(requests: AsyncIterator[migration_pb2.ImportVmRequest]) -> ImportVm:
    """Read a whole ImportVm. What is held in memory is never more than was announced, and that is limited.

    Raises ``Failure``: FIELD_INVALID, LIMIT_REACHED, SNAPSHOT_VERSION_UNSUPPORTED, SNAPSHOT_CORRUPT.
    """
    start = await _start(requests)
    header = start.image_header
    image = bytearray()
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise field_invalid("part", "chunk", str(request.WhichOneof("part")))
        _take(image, request.chunk, header)
    actual = hashlib.sha256(image).digest()
    if actual != header.sha256:
        raise _corrupt(f"the image has {len(image)} bytes of {header.size_bytes}, or others", header, image)
    return ImportVm(
        image=bytes(image),
        sha256=actual.hex(),
        migration=migration_name("start.migration", start.migration) if start.migration else "",
        name=vm_name("start.name", start.name) if start.name else "",
        request_id=request_id(start.request_id),
    )


async def _start(requests: AsyncIterator[migration_pb2.ImportVmRequest]) -> migration_pb2.ImportVmStart:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("part") != "start":
        raise field_invalid("part", "start", str(first.WhichOneof("part")) if first is not None else "nothing")
    header = first.start.image_header
    if header.format_version not in FORMAT_VERSIONS:
        supported = ",".join(map(str, FORMAT_VERSIONS))
        text = f"image format {header.format_version}: this host reads {supported}"
        raise Failure.because("SNAPSHOT_VERSION_UNSUPPORTED", text, version=header.format_version, supported=supported)
    if header.size_bytes > IMAGE_BYTES_MAX:
        text = f"an image of {header.size_bytes} bytes: {IMAGE_BYTES_MAX} are the most"
        raise Failure.because("LIMIT_REACHED", text, limit="image_bytes_max", maximum=IMAGE_BYTES_MAX)
    if header.size_bytes == 0:
        raise field_invalid("start.image_header.size_bytes", "1 or more", 0)
    if len(header.sha256) != _SHA_BYTES:
        raise field_invalid("start.image_header.sha256", f"{_SHA_BYTES} bytes", f"{len(header.sha256)} bytes")
    return first.start


def _take(image: bytearray, chunk: migration_pb2.VmImageChunk, header: migration_pb2.VmImageHeader) -> None:
    if not 1 <= len(chunk.data) <= CHUNK_BYTES_MAX:
        raise field_invalid("chunk.data", f"1 to {CHUNK_BYTES_MAX} bytes", f"{len(chunk.data)} bytes")
    if chunk.offset != len(image):
        raise _corrupt(f"a chunk of offset {chunk.offset}, where {len(image)} comes next", header, image)
    if len(image) + len(chunk.data) > header.size_bytes:
        raise _corrupt(f"more than the {header.size_bytes} bytes that were announced", header, image)
    image += chunk.data


def _corrupt(text: str, header: migration_pb2.VmImageHeader, image: bytearray) -> Failure:
    actual = hashlib.sha256(image).hexdigest()
    return Failure.because("SNAPSHOT_CORRUPT", text, expected=header.sha256.hex(), actual=actual)
