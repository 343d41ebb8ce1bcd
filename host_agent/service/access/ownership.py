"""What is whose: the VMs that a guest's identity names, and the sessions that it has opened.

A request is looked at by the names in it: every field that can hold the name of a resource has to be the caller's own,
and one has to be there. Whether the resource exists does not matter, so nobody learns what others have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.protobuf.message import Message

from host_agent.service.access.principal import Principal
from host_agent.service.errors import Failure
from host_agent.state import HostState

#: The fields of requests that name resources: `vms/...` or `sessions/...`.
RESOURCE_FIELDS: Final = ("name", "parent", "vm", "vcpu", "vcpus", "task", "session")
#: The field of CreateVm that holds a VM's id alone.
_VM_ID: Final = "vm_id"
#: The messages inside requests that name resources.
_INNER: Final = ("hello", "scope")
#: The lists of messages that narrow a request to resources: each has to name one, or it would let everything through.
_LISTS: Final = ("filters",)


def check_own(state: HostState, principal: Principal, method: str, request: Message) -> None:
    """Refuse, with NOT_OWNER, a request that names what is not the caller's, or names nothing."""
    names = list(resources(request))
    if not names:
        raise _not_owner(principal, method, "")
    for name in names:
        if not _owns(state, principal, name):
            raise _not_owner(principal, method, name)


def resources(request: Message) -> Iterator[str]:
    """The names in a request, of whatever message: each field of ``RESOURCE_FIELDS`` that is not empty."""
    fields = request.DESCRIPTOR.fields_by_name
    if _VM_ID in fields:
        yield f"vms/{getattr(request, _VM_ID)}"
        return  # what stands in its `vm` is what the VM is to be, and its name is the id
    for field in (name for name in RESOURCE_FIELDS if name in fields):
        value = getattr(request, field)
        if isinstance(value, str):
            yield from (value,) if value else ()
        else:
            yield from value
    for field in _INNER:
        if field in fields and fields[field].message_type is not None and request.HasField(field):
            yield from resources(getattr(request, field))
    for field in (name for name in _LISTS if name in fields):
        for inner in getattr(request, field):
            yield from tuple(resources(inner)) or ("",)


def _owns(state: HostState, principal: Principal, name: str) -> bool:
    """A VM's own, with all that is in it; a session's, where it opened it, or where there is no such session."""
    if name.startswith("sessions/"):
        session = state.sessions.get(name)
        return session is None or session.principal == principal.id
    return "/".join(name.split("/")[:2]) in principal.vms


def _not_owner(principal: Principal, method: str, resource: str) -> Failure:
    what = f"{resource!r} is not its own" if resource else "it has to name one of its own"
    text = f"{principal.id} has {method} for its own VMs and sessions alone: {what}"
    return Failure.because("NOT_OWNER", text, method=method, principal=principal.id, resource=resource)
