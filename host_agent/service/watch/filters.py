"""What a watcher wants to see, and what it may."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fpstate.v1 import migration_pb2, session_pb2, watch_pb2

from host_agent.service.access.principal import Principal, Role
from host_agent.service.errors import field_invalid
from host_agent.service.limits import WATCH_FILTERS_MAX
from host_agent.service.watch.history import Change
from host_agent.service.watch.resources import KINDS

_ID: Final = "[a-z][a-z0-9-]{0,62}"
_OWN: Final = "[a-z0-9-]{1,126}"
_PARENT: Final = re.compile(
    f"host|sessions/{_OWN}|vms/{_ID}(?:/tasks/{_ID}|/migrations/{_OWN}|/vcpus/[0-9]{{1,20}}(?:/exits/[0-9]{{1,20}})?)?"
)
_EXPECTED: Final = "vms/{vm} or a name below it, sessions/{session}, or host"


@dataclass(frozen=True, slots=True)
class Filter:
    """Kinds (none: any) and a name under which to look (empty: anywhere)."""

    kinds: frozenset[int]
    parent: str

    def fits(self, change: Change) -> bool:
        """Whether everything that is set in it fits."""
        if self.kinds and KINDS[type(change.resource)] not in self.kinds:
            return False
        return not self.parent or change.name == self.parent or change.name.startswith(f"{self.parent}/")


def filters_from_proto(messages: Iterable[watch_pb2.WatchFilter]) -> tuple[Filter, ...]:
    """Read them. Raises ``Failure``."""
    found = tuple(_filter(f"filters[{nr}]", message) for nr, message in enumerate(messages))
    if len(found) > WATCH_FILTERS_MAX:
        raise field_invalid("filters", f"at most {WATCH_FILTERS_MAX}", len(found))
    return found


def _filter(path: str, message: watch_pb2.WatchFilter) -> Filter:
    known = set(watch_pb2.ResourceKind.values()) - {watch_pb2.RESOURCE_KIND_UNSPECIFIED}
    for nr, kind in enumerate(message.kinds):
        if kind not in known:
            raise field_invalid(f"{path}.kinds[{nr}]", "a kind of resource", kind)
    if message.parent and not _PARENT.fullmatch(message.parent):
        raise field_invalid(f"{path}.parent", _EXPECTED, message.parent)
    return Filter(frozenset(message.kinds), message.parent)


@dataclass(frozen=True, slots=True)
class View:
    """What one watcher gets: what one of its filters lets through, or everything; and never what is not for it."""

    filters: tuple[Filter, ...]
    principal: Principal

    def shows(self, change: Change) -> bool:
        """Whether the change goes to this watcher."""
        if self.filters and not any(each.fits(change) for each in self.filters):
            return False
        if isinstance(change.resource, migration_pb2.Migration):
            return self.principal.role is not Role.GUEST  # its proof is for those who may ask for migrations
        if isinstance(change.resource, session_pb2.Session):
            return self.principal.role is Role.OPERATOR or change.owner == self.principal.id
        return True
