"""A principal: who calls, as its certificate says, or as the socket's owner has decided.

    spiffe://TRUST-DOMAIN/ROLE/NAME                 one URI SAN, an X.509 SVID
    spiffe://TRUST-DOMAIN/guest/NAME/vms/ID/ID      a guest whose VMs are not the one of its own name

Source: the SPIFFE ID specification, sections 2.1 and 2.2 (what a trust domain and a path may hold).
"""

from __future__ import annotations

import enum
import re
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,128}")
_VM_ID: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")


class Role(enum.Enum):
    """What a principal is to the host. The matrix says what each may call."""

    GUEST = "guest"
    CONTROLLER = "controller"
    OPERATOR = "operator"
    FAULT = "fault"


#: What an identity looks like, for errors.
EXPECTED: Final = "spiffe://TRUST-DOMAIN/ROLE/NAME with a role of guest, controller, operator, fault"


class IdentityError(ValueError):
    """A text that is no identity; it says what was expected."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. ``vms`` are the resource names of what a guest may touch; ``trust_domain`` is empty for local ones."""

    role: Role
    name: str
    vms: frozenset[str] = frozenset()
    trust_domain: str = ""
    #: What tells it from every other principal; its VMs may change under it.
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{self.trust_domain or 'local'}/{self.role.value}/{self.name}")


#: Nobody was asked: calls inside the process, and tests of single layers.
INTERNAL: Final = Principal(Role.OPERATOR, "internal")
#: Who makes the call that this task serves.
current_principal: ContextVar[Principal] = ContextVar("principal", default=INTERNAL)


def principal_of(uri: str) -> Principal:
    """Read a SPIFFE ID. Raises ``IdentityError``."""
    domain, slash, path = uri.removeprefix("spiffe://").partition("/")
    if not uri.startswith("spiffe://") or not slash or not _TRUST_DOMAIN.fullmatch(domain):
        raise IdentityError(f"expected {EXPECTED}, got {uri!r}")
    return _from_path(path, domain)


def local_principal(text: str) -> Principal:
    """Read `ROLE/NAME`, or `guest/NAME/vms/ID/...`: who the peers of a local listener are. Raises ``IdentityError``."""
    return _from_path(text, "")


def _from_path(path: str, trust_domain: str) -> Principal:
    role_text, _, rest = path.partition("/")
    name, _, more = rest.partition("/")
    roles = {role.value: role for role in Role}
    if role_text not in roles or not _NAME.fullmatch(name) or name in (".", ".."):
        raise IdentityError(f"expected {EXPECTED}, got {path!r}")
    role = roles[role_text]
    return Principal(role, name, _vms(role, name, more), trust_domain)


def _vms(role: Role, name: str, more: str) -> frozenset[str]:
    """The VMs that a guest names, or the VM of its own name; other roles name none."""
    if not more:
        return frozenset({f"vms/{name}"} if role is Role.GUEST else ())
    word, _, listed = more.partition("/")
    ids = listed.split("/")
    if role is not Role.GUEST or word != "vms" or not all(_VM_ID.fullmatch(each) for each in ids):
        raise IdentityError(f"expected nothing, or for a guest vms/ID/ID, after ROLE/NAME, got {more!r}")
    return frozenset(f"vms/{each}" for each in ids)
