"""Which reasons each call can answer with, read off the code: what its servicer, and the command it submits, can reach.

From the servicer's method every function is followed that it names: of its module, imported, of its own class, of the
machine's state, and the handlers of the commands it makes. Each reason that is named on the way counts. That may be one
too many, where a function is reached with arguments that exclude it, and never one too few: the tests of the services
check every refusal they meet against this table.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from google.protobuf import descriptor_pool

from host_agent.machine import HANDLERS
from host_agent.service.access.matrix import MATRIX, Grant
from host_agent.service.errors import CODES
from host_agent.service.server import SERVICES

ROOT: Final = Path(__file__).resolve().parent.parent
_REGISTRY: Final = ROOT / "protos" / "fpstate" / "v1" / "errors.proto"

#: What every call can answer with, before or after its own: listed once. The layers around it say most of them, and
#: the release layer refuses whatever call it is what the disk has no room for, or cannot keep.
COMMON: Final = (
    "DEADLINE_REACHED",
    "FIELD_INVALID",
    "INTERNAL_INVARIANT",
    "LIMIT_REACHED",
    "PRINCIPAL_UNKNOWN",
    "RATE_LIMITED",
    "ROLE_NOT_ALLOWED",
    "STORAGE_FAILED",
    "STORAGE_FULL",
)
#: The parts of a batch that belong to one event: what it can be refused with is the outcome `rejected`, and no error of
#: the call.
_ONE_EVENT: Final = "host_agent.sessions._one"
_NO_CREDIT: Final = "host_agent.service.batches._no_credit"
#: What comes in through a future or a queue, and is named where somebody else's command is applied.
_FROM_ELSEWHERE: Final = {
    "Attach": ("HOST_DRAINING", "SESSION_EXPIRED"),
    "Watch": ("HOST_DRAINING",),
    "WatchExits": ("HOST_DRAINING",),
    "WatchFaults": ("HOST_DRAINING",),
    "ImportVm": ("REQUEST_ID_REUSED",),
    "SubmitEvents": ("HOST_DRAINING", "SESSION_EXPIRED", "SESSION_FENCED", "SESSION_NOT_FOUND"),
    "WaitOutcome": ("HOST_DRAINING", "SESSION_EXPIRED", "SESSION_FENCED", "SESSION_NOT_FOUND"),
}
#: Errors of the machine that it turns into a reason, whatever the command.
_BY_ERROR: Final = {"WrongStateError": "VCPU_PARKED"}
#: Whose methods a name is known to have, where no type is written beside it.
_RECEIVERS: Final = {
    "state": "host_agent.state.HostState",
    "_drain": "host_agent.service.drain.Drain",
    "_agent": "host_agent.service.agent.HostAgent",
    "agent": "host_agent.service.agent.HostAgent",
}
#: Applied to every command: what they reach says nothing about one.
_NOT_FOLLOWED: Final = ("host_agent.service.agent.HostAgent.submit", "host_agent.machine", _ONE_EVENT, _NO_CREDIT)


@dataclass(frozen=True, slots=True)
class _Function:
    """A function: the module and the class it lies in, and its text."""

    module: str
    owner: str
    node: ast.AST


@dataclass(slots=True)
class _Module:
    """What a module defines and what its names mean."""

    functions: dict[str, _Function] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


@functools.cache
def reasons_by_method() -> dict[str, tuple[str, ...]]:
    """Reasons by method of the contract, those of ``COMMON`` apart; sorted."""
    return {path: _reasons_of(path) for path in MATRIX if path.startswith("/fpstate.")}


def event_reasons() -> tuple[str, ...]:
    """What an event can be rejected with; FIELD_INVALID and INTERNAL_INVARIANT as well."""
    return tuple(sorted(_reached(_ONE_EVENT) | _reached(_NO_CREDIT)))


def _reasons_of(path: str) -> tuple[str, ...]:
    _, service, name = path.split("/")
    found = _reached(_servicer(service, name))
    found |= set(_FROM_ELSEWHERE.get(name, ()))
    found |= {"NOT_OWNER"} if Grant.OWN in MATRIX[path].values() else set()
    if "request_id" in _request_fields(service, name):
        found.add("REQUEST_ID_REUSED")
    return tuple(sorted(found - set(COMMON)))


def _servicer(service: str, name: str) -> str:
    cls = service.rpartition(".")[2]
    module = cls.removesuffix("Service").removeprefix("Guest").lower() + "_service"
    return f"host_agent.service.{module}.{cls}.{name}"


def _request_fields(service: str, name: str) -> set[str]:
    assert service in SERVICES, "the server's modules have brought the descriptors"
    method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    return set(method.input_type.fields_by_name)


# -- following the code ------------------------------------------------------------------------------------------------


def _reached(start: str) -> set[str]:
    """The reasons named in ``start`` and in whatever it reaches."""
    seen: set[str] = set()
    waiting = [start]
    reasons: set[str] = set()
    while waiting:
        name = waiting.pop()
        function = _find(name)
        if name in seen or function is None:
            continue
        seen.add(name)
        for node in ast.walk(function.node):
            reasons |= set(_named_reasons(node))
            waiting += [each for each in _targets(function, node) if not each.startswith(_NOT_FOLLOWED)]
    return reasons


def _named_reasons(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Attribute(value=ast.Name(id="Reason"), attr=name) if name in CODES:
            yield name
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="Failure"), attr="because"), args=[ast.Constant(value=name), *_]
        ):
            yield str(name)
        case ast.Call(func=ast.Name(id="Failure"), args=[ast.Constant(value=name), *_]):
            yield str(name)
        case ast.Call(func=ast.Name(id=name)) if name in _BY_ERROR:
            yield _BY_ERROR[name]
        case _:
            pass


def _targets(function: _Function, node: ast.AST) -> Iterator[str]:
    """What a node names: functions, all methods of a class that is made, the handler of a command."""
    names = _modules()[function.module].names
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in names:
            yield from _made(names[name])
        case ast.Name(id=name) if name in names:
            yield names[name]
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            yield f"{function.module}.{function.owner}.{attr}"
        case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in names:
            yield f"{names[name]}.{attr}"
        case ast.Attribute(value=ast.Name(id=receiver) | ast.Attribute(attr=receiver), attr=attr):
            if receiver in _RECEIVERS:
                yield f"{_RECEIVERS[receiver]}.{attr}"
        case _:
            pass


def _made(name: str) -> Iterator[str]:
    """What making an object of a class may lead to; a command leads to its handler."""
    handler = _handlers().get(name)
    if handler is not None:
        yield handler
        return
    module, _, last = name.rpartition(".")
    methods = _modules()[module].classes.get(last) if module in _modules() else None
    yield from (f"{name}.{method}" for method in methods or ())


def _find(name: str) -> _Function | None:
    """A function by its full name: module, class if it has one, name."""
    module, _, last = name.rpartition(".")
    if module in _modules():
        return _modules()[module].functions.get(last)
    module, _, owner = module.rpartition(".")
    return _modules()[module].functions.get(f"{owner}.{last}") if module in _modules() else None


@functools.cache
def _handlers() -> dict[str, str]:
    return {
        f"{command.__module__}.{command.__name__}": f"{handler.__module__}.{handler.__name__}"
        for command, handler in HANDLERS.items()
        if handler.__module__ != "host_agent.machine"
    }


@functools.cache
def _modules() -> dict[str, _Module]:
    found = {}
    for path in sorted((ROOT / "host_agent").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = _read(name, ast.parse(path.read_text()))
    return found


def _read(name: str, tree: ast.Module) -> _Module:
    module = _Module()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module.names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=own) | ast.AsyncFunctionDef(name=own):
                module.functions[own] = _Function(name, "", node)
                module.names[own] = f"{name}.{own}"
            case ast.AnnAssign(target=ast.Name(id=own), value=ast.Dict()):  # a table, of functions for instance
                module.functions[own] = _Function(name, "", node)
                module.names[own] = f"{name}.{own}"
            case ast.ClassDef(name=own, body=body):
                methods = [each for each in body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
                module.functions |= {f"{own}.{each.name}": _Function(name, own, each) for each in methods}
                module.classes[own] = [each.name for each in methods]
                module.names[own] = f"{name}.{own}"
            case _:
                pass
    return module


# -- the tables of docs/errors.md --------------------------------------------------------------------------------------


def registry() -> dict[str, tuple[str, str, str]]:
    """Reason -> (what it means, code, metadata), as errors.proto says."""
    found = {}
    for comment, name in re.findall(r"((?:  //[^\n]*\n)+)  ERROR_REASON_(\w+) = [1-9]\d*;", _REGISTRY.read_text()):
        words = " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines())
        meaning, _, rest = words.partition(" Code: ")
        code, _, metadata = rest.partition(" Metadata: ")
        found[name] = (meaning, code.rstrip("."), metadata.rstrip("."))
    return found


def reasons_table() -> str:
    """Every reason there is."""
    lines = ["| reason | code | metadata | |", "|---|---|---|---|"]
    for name, (meaning, code, metadata) in registry().items():
        lines.append(f"| `{name}` | {code} | {metadata} | {meaning} |")
    return "\n".join(lines) + "\n"


def calls_table() -> str:
    """What each call can answer with, by service."""
    lines = ["| call | reasons |", "|---|---|"]
    service = ""
    for path, reasons in reasons_by_method().items():
        _, found, name = path.split("/")
        if found != service:
            service = found
            lines.append(f"| **{service}** | |")
        lines.append(f"| {name} | {', '.join(f'`{reason}`' for reason in reasons)} |")
    return "\n".join(lines) + "\n"


def common_table() -> str:
    """What every call can answer with, and what an event can be rejected with."""
    common = ", ".join(f"`{reason}`" for reason in COMMON)
    events = ", ".join(f"`{reason}`" for reason in event_reasons())
    return f"| | reasons |\n|---|---|\n| every call | {common} |\n| an event, as `rejected` | {events} |\n"
