"""Every method of the server, by its path, with the descriptors of its messages."""

from __future__ import annotations

from typing import Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from host_agent.service.access.matrix import MATRIX
from tests.service.calls import method_descriptor

#: Drains for good: it has a block of its own, at the end.
DRAIN: Final = "/fpstate.v1.HostService/DrainHost"
PATHS: Final = tuple(path for path in MATRIX if path != DRAIN)


def request_class(path: str) -> type[Message]:
    """The class of a method's requests."""
    return message_factory.GetMessageClass(method_descriptor(path).input_type)


def response_class(path: str) -> type[Message]:
    """The class of a method's responses."""
    return message_factory.GetMessageClass(method_descriptor(path).output_type)


def full_path(short: str) -> str:
    """``VmService/GetVm`` with its package."""
    (found,) = (path for path in MATRIX if path.endswith(f".{short}"))
    return found


def descriptor(path: str) -> MethodDescriptor:
    """Of a method; the pool has it once the server's modules are imported."""
    assert descriptor_pool.Default() is not None
    return method_descriptor(path)
