"""What is known of a method by its name: which of its sides are streams. From the descriptors that are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fpstate.fault.v1 import fault_pb2  # noqa: F401 -- so that their methods are known
from fpstate.v1 import (  # noqa: F401
    exit_pb2,
    host_pb2,
    migration_pb2,
    session_pb2,
    task_pb2,
    vcpu_pb2,
    vm_pb2,
    watch_pb2,
)
from google.protobuf import descriptor_pool


@dataclass(frozen=True, slots=True)
class Kind:
    """A method's sides."""

    name: str
    requests: bool
    responses: bool

    @property
    def stream(self) -> bool:
        """Whether any side is one."""
        return self.requests or self.responses


@lru_cache(maxsize=1 << 10)
def kind_of(path: str) -> Kind:
    """The kind of ``/package.Service/Method``; of one that nobody has loaded, both sides count as streams."""
    _, _, rest = path.partition("/")
    service, _, name = rest.partition("/")
    try:
        method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return Kind(name, requests=True, responses=True)
    return Kind(name, method.client_streaming, method.server_streaming)
