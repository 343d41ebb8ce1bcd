"""Imports run one way, and this is the table that says which.

    fpu_core <- host_agent.kvm <- host_agent (machine, commands) <- host_agent.service
    fault_lab.injection is a leaf; guest_agent and vmm_controller see the protos (fpstate), fpu_core.xfeature and
    fault_lab.injection alone; fpstated, the face, sees everything.

The table is held against the source text of the whole tree, so a module counts whether or not anything imports it. A
module belongs to the rule with the longest name that it starts with, and every module must belong to one: a new package
fails here until it has its line.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: What a pure module does without: other threads of control, clocks, chance, the outside world, and talk. All of them
#: come in as arguments or as commands, which is why a recorded run can be replayed.
# fmt: off
IMPURE = frozenset({
    "asyncio", "concurrent", "multiprocessing", "queue", "sched", "signal", "subprocess", "threading",
    "time", "random", "secrets", "uuid",
    "os", "select", "selectors", "shutil", "socket", "socketserver", "sqlite3", "ssl", "tempfile",
    "logging",
})
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What the modules of one package may import besides their own package and the standard library.

    A rule for a package inside another takes its modules out of the outer rule, in both directions: `host_agent` may
    not import `host_agent.service` unless its line says so.
    """

    package: str
    ours: tuple[str, ...] = ()
    third_party: tuple[str, ...] = ()
    pure: bool = False


#: Everything of ours, for the places where all ends meet.
EVERYTHING = ("fpstated", "fpu_core", "host_agent", "guest_agent", "vmm_controller", "fault_lab", "fpstate")
#: The parts of the lab that have a rule of their own.
LAB = (
    "fault_lab.broken",
    "fault_lab.campaign",
    "fault_lab.explore",
    "fault_lab.injection",
    "fault_lab.linear",
    "fault_lab.live",
    "fault_lab.pictures",
    "fault_lab.plan",
    "fault_lab.search",
    "fault_lab.sim",
    "fault_lab.wire",
)
#: What a guest agent and a controller know of the rest: the wire, the names of the features, and the fault points.
OUTSIDE_VIEW = ("fpstate", "fpu_core.xfeature", "fault_lab.injection", "fpstated.link")
#: grpc itself, and google.protobuf and google.rpc beside it.
WIRE = ("grpc", "grpc_status", "google")

# fmt: off
RULES = (
    # The host FPU problem. It knows nobody; its fault hook comes in as an argument.
    Rule(package="fpu_core", third_party=("numpy",), pure=True),

    # The KVM problem.
    Rule(package="host_agent.kvm", ours=("fpu_core",), pure=True),

    # The machine and its commands: every module that lies in host_agent itself.
    Rule(package="host_agent", ours=("fpu_core", "host_agent.kvm", "fault_lab.injection"),
         third_party=("numpy",), pure=True),

    # Durable commands: below the services, beside the machine; its database is its own.
    Rule(package="host_agent.journal", ours=("fpu_core", "host_agent", "host_agent.kvm", "fault_lab.injection"),
         third_party=("apsw",)),

    # The gRPC shells: translate, submit, await, translate.
    Rule(package="host_agent.service",
         ours=("fpu_core", "host_agent", "host_agent.kvm", "host_agent.journal", "fault_lab.injection",
               "fault_lab.wire", "fpstate", "fpstated.link"),
         third_party=(*WIRE, "grpc_channelz", "grpc_health", "grpc_reflection", "prometheus_client")),

    # The guest's side; it runs on the base install, which has no numpy.
    Rule(package="guest_agent", ours=OUTSIDE_VIEW, third_party=WIRE),

    # The controller's policies are pure, so that a simulated controller decides like a live one; its loop is not.
    Rule(package="vmm_controller", ours=(*OUTSIDE_VIEW, "vmm_controller.policy"),
         third_party=(*WIRE, "prometheus_client")),
    Rule(package="vmm_controller.policy", ours=OUTSIDE_VIEW, third_party=("google",), pure=True),

    # The fault points: a leaf that agents and controllers may import.
    Rule(package="fault_lab.injection", pure=True),
    # The same faults as the wire has them.
    Rule(package="fault_lab.wire", ours=("fpstate", "fault_lab.injection"), third_party=("google",), pure=True),
    # Versions of core and machine that are wrong in one step; its command is the face's, in a broken process.
    Rule(package="fault_lab.broken", ours=("fpstated", "fpu_core", "host_agent", "host_agent.kvm"), pure=True),
    # Plans: text in, messages and armed faults out.
    # It asks the parts themselves what they take: profiles, allocation policies, controllers' policies, scripts.
    Rule(package="fault_lab.plan",
         ours=("fpstate", "fault_lab.injection", "fault_lab.wire", "fpu_core", "host_agent.kvm",
               "vmm_controller.policy", "guest_agent"),
         third_party=("google", "yaml"), pure=True),
    # Histories against the rules of KVM, which it asks; what a record says is made of the wire's and a guest's values.
    Rule(package="fault_lab.linear", ours=("fpstate", "fpu_core", "host_agent.kvm", "guest_agent"), pure=True),
    # The virtual-time world: every pure part, and of the services what translates. No thread, no clock, no socket.
    Rule(package="fault_lab.sim",
         ours=("fpstate", "fpstated", "fpu_core", "host_agent", "host_agent.kvm", "host_agent.journal",
               "host_agent.service", "guest_agent", "vmm_controller", "vmm_controller.policy",
               "fault_lab.injection", "fault_lab.wire", "fault_lab.plan", "fault_lab.linear", "fault_lab.broken"),
         third_party=WIRE, pure=True),
    # Every order of a small world: the same machine, policies, scripts and rules, and states in place of tasks.
    Rule(package="fault_lab.explore",
         ours=("fpstate", "fpu_core", "host_agent", "host_agent.kvm", "host_agent.journal", "guest_agent",
               "vmm_controller", "vmm_controller.policy", "fault_lab.injection", "fault_lab.wire", "fault_lab.plan",
               "fault_lab.sim"),
         pure=True),
    # Searches: which runs of the virtual-time world are made.
    Rule(package="fault_lab.search",
         ours=("fpstate", "fault_lab.injection", "fault_lab.wire", "fault_lab.plan", "fault_lab.sim"),
         third_party=("google",), pure=True),
    # Many seeds on many processors: not pure, as it keeps what is done and hands out what is not.
    Rule(package="fault_lab.campaign",
         ours=("fpstate", "fpstated", "host_agent.journal", "fault_lab.plan", "fault_lab.search", "fault_lab.sim"),
         third_party=("google", "distributed", "ray")),
    # The same plans on real processes: what starts, breaks and follows them, and the wire between them.
    Rule(package="fault_lab.live",
         ours=(*EVERYTHING, "host_agent.service", "vmm_controller.policy", "fault_lab.injection", "fault_lab.wire",
               "fault_lab.plan", "fault_lab.linear", "fault_lab.sim"),
         third_party=(*WIRE, "hpack")),
    # Pictures of what was recorded: text in, text out.
    Rule(package="fault_lab.pictures",
         ours=("fault_lab.injection", "fault_lab.sim", "fpu_core", "host_agent"), pure=True),
    # What authors of tests import.
    Rule(package="fault_lab",
         ours=(*EVERYTHING, *LAB),
         third_party=(*WIRE, "pytest", "hypothesis")),

    # What host, guests and controllers share about a connection: TLS and trace context. A leaf.
    Rule(package="fpstated.link", third_party=("grpc", "opentelemetry")),

    # The face.
    Rule(package="fpstated",
         ours=(*EVERYTHING, "host_agent.kvm", "host_agent.journal", "host_agent.service", "vmm_controller.policy",
               "fpstated.link", *LAB),
         third_party=(*WIRE, "cryptography", "typer", "rich", "pytest", "pytest_asyncio", "prometheus_client")),
)
# fmt: on

#: Folders of the root whose Python is not part of what is installed; they import what they like.
UNRULED = frozenset({"tests", "bench", "tools", "docs", "clients", "deploy", "protos", "build", "dist"})


def rule_of(name: str) -> Rule | None:
    """Return the rule with the longest package name that the dotted name `name` starts with."""
    fitting = [rule for rule in RULES if _within(name, rule.package)]
    return max(fitting, key=lambda rule: len(rule.package), default=None)


def violations(root: Path) -> list[str]:
    """Return one line for every import below `root` that the table forbids, and for every module without a rule."""
    return [
        f"{path.relative_to(root)}{complaint}"
        for path in _installed_modules(root)
        for complaint in _complaints(path, _dotted(path, root), root)
    ]


def _installed_modules(root: Path) -> Iterator[Path]:
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in UNRULED:
            yield from sorted(folder.rglob("*.py"))


def _complaints(path: Path, module: str, root: Path) -> Iterator[str]:
    rule = rule_of(module)
    if rule is None:
        yield f": no rule in tests/test_imports.py covers {module}"
        return
    for line, imported in _imports(path, module, root):
        reason = _forbidden(rule, imported)
        if reason:
            yield f":{line}: {module} imports {imported}: {reason}"


def _forbidden(rule: Rule, imported: str) -> str | None:
    """Return why a module under `rule` may not import `imported`, or None if it may."""
    top = imported.partition(".")[0]
    if top in sys.stdlib_module_names:
        return f"{rule.package} is pure" if rule.pure and top in IMPURE else None
    if top not in EVERYTHING:
        return None if top in rule.third_party else f"not among the dependencies of {rule.package}"
    return None if _may_see(rule, imported) else f"the table gives {rule.package} no way there"


def _may_see(rule: Rule, imported: str) -> bool:
    """Say whether the line of `rule` names `imported`; a sub-package with a line of its own must be named itself."""
    owner = rule_of(imported)
    if owner is rule:
        return True
    named = [name for name in rule.ours if _within(imported, name)]
    return any(owner is None or _within(name, owner.package) for name in named)


def _imports(path: Path, module: str, root: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of each import in a file, wherever it stands, also those for the type checker alone."""
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(names=names):
                source = _absolute(node, module, is_package=path.name == "__init__.py")
                yield from ((node.lineno, _submodule(source, alias.name, root)) for alias in names)
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
                yield node.lineno, _literal_argument(node)


def _literal_argument(call: ast.Call) -> str:
    """Return the module that a call of import_module names, which must be written out."""
    match call.args:
        case [ast.Constant(value=str(name)), *_]:
            return name
    return "a computed name"


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    # The first dot is the package that the module lies in, which a package's own __init__ already is.
    climbed = parts[: len(parts) - node.level + is_package]
    return ".".join([*climbed, *([node.module] if node.module else [])])


def _submodule(source: str, name: str, root: Path) -> str:
    """Return source.name where that is a module of ours (`from fpu_core import swap`), source otherwise."""
    candidate = root.joinpath(*source.split("."), name)
    return f"{source}.{name}" if candidate.is_dir() or candidate.with_suffix(".py").is_file() else source


def _dotted(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_imports_run_one_way() -> None:
    """No module of the tree imports what the table does not give it."""
    assert violations(ROOT) == []


def test_every_package_that_is_installed_has_a_rule() -> None:
    """The packages that the wheel holds are those of the table, so that none is left out by a spelling mistake."""
    ruled = {rule.package.partition(".")[0] for rule in RULES}
    present = {path.parent.name for path in ROOT.glob("*/__init__.py")} - UNRULED
    assert present == ruled


def test_the_table_has_no_cycle_below_the_face() -> None:
    """Following the table never comes back; the face and the fault lab, which see everything, stand on top."""
    below = {rule.package: {owner for name in rule.ours if (owner := _owner(name))} for rule in RULES}
    on_top = {"fpstated", "fault_lab", "fault_lab.live"}
    while leaves := {package for package, seen in below.items() if not seen - on_top - {package}}:
        below = {package: seen - leaves for package, seen in below.items() if package not in leaves}
    assert below == {}


def _owner(name: str) -> str | None:
    rule = rule_of(name)
    return rule.package if rule else None


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        pytest.param("fpu_core/a.py", "import asyncio", "fpu_core is pure", id="a pure package has no event loop"),
        pytest.param(
            "fpu_core/a.py", "def f():\n    import time", "fpu_core is pure", id="nor a clock inside a function"
        ),
        pytest.param("fpu_core/a.py", "import grpc", "not among the dependencies", id="nor gRPC"),
        pytest.param("fpu_core/a.py", "from host_agent import machine", "no way there", id="the core knows nobody"),
        pytest.param("host_agent/kvm/a.py", "from .. import machine", "no way there", id="a relative import counts"),
        pytest.param(
            "host_agent/machine.py", "import host_agent.service", "no way there", id="the machine serves nobody"
        ),
        pytest.param("guest_agent/a.py", "import numpy", "not among the dependencies", id="a guest has no numpy"),
        pytest.param(
            "guest_agent/a.py", "import fpu_core.swap", "no way there", id="a guest sees the features' names only"
        ),
        pytest.param("guest_agent/a.py", "from fpu_core import swap", "no way there", id="however it is written"),
        pytest.param("fault_lab/injection/a.py", "import fpu_core", "no way there", id="the fault points are a leaf"),
        pytest.param(
            "fpu_core/a.py", "__import__(name)", "a computed name", id="an import by a computed name is refused"
        ),
        pytest.param("newcomer/a.py", "", "no rule", id="a package without a line is refused"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    """An import that the table forbids is reported with its file."""
    for name in ("fpu_core/swap.py", "host_agent/machine.py", file):
        _write(tmp_path / name, "")
    _write(tmp_path / file, source)
    (found,) = violations(tmp_path)
    assert found.startswith(file)
    assert complaint in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        pytest.param(
            "guest_agent/a.py", "from fpu_core import xfeature\nfrom fpstate.v1 import host_pb2", id="a guest"
        ),
        pytest.param(
            "host_agent/service/a.py", "import asyncio, grpc\nfrom host_agent.machine import M", id="a service"
        ),
        pytest.param("host_agent/machine.py", "from .kvm import life_cycle\nfrom . import commands", id="the machine"),
        pytest.param("vmm_controller/a.py", "from vmm_controller.policy import Retry", id="the exit loop"),
        pytest.param("fpstated/a.py", "import host_agent.service.server, vmm_controller.policy, typer", id="the face"),
    ],
)
def test_an_import_that_the_table_gives_is_silent(tmp_path: Path, file: str, source: str) -> None:
    """What the table allows is not reported, whether or not the imported module exists yet."""
    _write(tmp_path / "fpu_core/xfeature.py", "")
    _write(tmp_path / file, source)
    assert violations(tmp_path) == []


def _write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
