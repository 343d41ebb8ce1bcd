"""The bytes of a VM's image: a line that says what it is, and JSON, compressed.

    "fpstated vm image 1"
    zlib of {"type": "VmImage", ...}, as ``host_agent.typed_json`` has it

Registers are mostly zeros, so a vCPU often takes no more than some hundred bytes. What is read back is checked field by
field; it may be no image of ours although its digest fits.
"""

from __future__ import annotations

import json
import zlib
from typing import Final

from fpu_core.errors import FieldError
from host_agent.typed_json import from_json, to_json
from host_agent.vm_image import VmImage

MAGIC: Final = b"fpstated vm image 1\n"
#: The bytes of an image, as they travel and as they unfold: some 6,000 vCPUs with tiles full of noise.
IMAGE_BYTES_MAX: Final = 64 * 1024 * 1024
UNFOLDED_BYTES_MAX: Final = 512 * 1024 * 1024


def pack_image(image: VmImage) -> bytes:
    """Return the bytes. The same image has the same bytes."""
    text = json.dumps(to_json(image), separators=(",", ":"), sort_keys=True)
    return MAGIC + zlib.compress(text.encode(), 1)


def unpack_image(raw: bytes) -> VmImage:
    """Read an image. Raises ``FieldError`` for what is none."""
    if not raw.startswith(MAGIC):
        raise FieldError("image", f"bytes that begin with {MAGIC.decode().strip()!r}", f"{raw[: len(MAGIC)]!r}")
    unfolding = zlib.decompressobj()
    try:
        text = unfolding.decompress(raw[len(MAGIC) :], UNFOLDED_BYTES_MAX)
    except zlib.error as error:
        raise FieldError("image", "zlib data behind its first line", str(error)) from error
    if unfolding.unconsumed_tail:
        raise FieldError("image", f"at most {UNFOLDED_BYTES_MAX} bytes when unfolded", "more")
    if not unfolding.eof or unfolding.unused_data:
        raise FieldError("image", "one zlib stream to its end", "a part of one" if not unfolding.eof else "more")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldError("image", "JSON", str(error)) from error
    image = from_json(VmImage, found, "image")
    assert isinstance(image, VmImage)
    return image
