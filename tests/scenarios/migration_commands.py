"""``on`` and ``migrate``: a second host, and a VM that goes from one to the other."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Final

from host_agent.compat import check_compat, requirements_of
from host_agent.image_form import MAGIC, pack_image
from host_agent.migration_commands import AbortMigration, BeginMigration, CommitMigration, ImportVm, StageMigration
from host_agent.migrations import MigrationRecord
from host_agent.state import VmRecord
from host_agent.vm_export import find_export, image_of
from tests.scenarios.block import ScenarioError
from tests.scenarios.operands import Words, number
from tests.scenarios.world import World


def on(world: World, words: Words) -> None:
    """What follows happens on this host; ``profile=``, ``limit=`` for one that is new."""
    name, profile, limit = words.take("a host"), words.key("profile", "sapphire-rapids"), words.key("limit")
    words.end()
    new = name not in world.hosts
    world.go_to(name, profile=profile, byte_limit=number(limit) if limit else None)
    world.lanes.host(f"on host {name}", f"new: {profile}" if new else "")


def migrate(world: World, words: Words) -> None:
    """One step of a migration, on the host where the file is."""
    step = words.take(f"one of {', '.join(_STEPS)}")
    if step not in _STEPS:
        raise ScenarioError(f"migrate: expected one of {', '.join(_STEPS)}, got {step!r}")
    _STEPS[step](world, words)
    world.tell_effects()


def _check(world: World, words: Words) -> None:
    """CheckCompat on host ``on=`` for a VM that is here."""
    vm = world.vm(words.take("a VM"))
    other = words.key("on")
    words.end()
    found = check_compat(world.hosts[other].machine.state, requirements_of(vm))
    world.lanes.user(f"CheckCompat {vm.id} on {other}", "compatible" if not found else "")
    for each in found:
        world.lanes.user(f"  {each.kind.name} {each.field}", each.description)


def _begin(world: World, words: Words) -> None:
    vm, target = words.take("a VM"), words.key("to")
    words.end()
    world.lanes.user(f"BeginMigration {vm} to {target}")
    record: MigrationRecord = world.apply(BeginMigration(vm=f"vms/{vm}", target=target))
    world.migrations.setdefault(vm, []).append(record.name)
    _tell(world, record)


def _adopt(world: World, words: Words) -> None:
    """Take up a migration that somebody else has begun: a decision."""
    vm = words.take("a VM")
    words.end()
    record = world.state.leaving[f"vms/{vm}"]
    world.migrations.setdefault(vm, []).append(record.name)
    world.lanes.user(f"migration of {vm} to {record.target}")
    _tell(world, record)


def _export(world: World, words: Words) -> None:
    """The image, for the migration that is open; ``snapshot`` for none."""
    vm, snapshot, label = words.take("a VM"), words.flag("snapshot"), words.key("as", "image")
    words.end()
    world.lanes.user(f"ExportVm {vm}{' snapshot' if snapshot else ''}")
    image = image_of(world.state, *find_export(world.state, f"vms/{vm}", "" if snapshot else _name(world, vm)))
    world.images[label] = pack_image(image)
    parked = sum(vcpu.exit is not None for vcpu in image.vcpus)
    world.lanes.append(f"{len(image.vcpus)} vCPUs, {parked} parked, {len(image.cpuids)} CPUIDs")


def _import(world: World, words: Words) -> None:
    """An image; ``damaged=`` in a way of ``_DAMAGE``, ``migration=`` of another VM, ``name=`` for a snapshot."""
    snapshot, damage, of, name = words.flag("snapshot"), words.key("damaged"), words.key("of"), words.key("name")
    label = words.take("an image") if words.peek() else "image"
    words.end()
    raw = world.images[label]
    sha256 = hashlib.sha256(raw).hexdigest()
    if damage:
        raw, sha256 = _DAMAGE[damage](raw, sha256)
    migration = "" if snapshot else _name(world, of or "a")
    world.lanes.user(f"ImportVm {label}{' ' + damage if damage else ''}")
    command = ImportVm(image=raw, sha256=sha256, migration=migration, name=f"vms/{name}" if name else "")
    found = world.apply(command)
    world.watch()
    if isinstance(found, VmRecord):
        world.lanes.append(f"VM {found.id}, epoch {found.ownership_epoch}")
    else:
        _tell(world, found)


def _stage(world: World, words: Words) -> None:
    vm = words.take("a VM")
    words.end()
    world.lanes.user(f"StageMigration {vm}")
    name = _name(world, vm)
    record: MigrationRecord = world.apply(StageMigration(migration=name, ownership_epoch=_epoch(world, name)))
    world.watch()
    _tell(world, record, f", {record.reserved_bytes} B")


def _commit(world: World, words: Words) -> None:
    vm, proof, said, force = _ending(world, words)
    world.lanes.user(f"CommitMigration {vm}{said}")
    name = _name(world, vm)
    command = CommitMigration(migration=name, ownership_epoch=_epoch(world, name), proof=proof, force=force)
    _tell(world, world.apply(command))


def _abort(world: World, words: Words) -> None:
    vm, proof, said, force = _ending(world, words)
    world.lanes.user(f"AbortMigration {vm}{said}")
    name = _name(world, vm)
    command = AbortMigration(
        migration=name, ownership_epoch=_epoch(world, name), proof=proof, force=force, reason="the file says so"
    )
    _tell(world, world.apply(command))


def _ending(world: World, words: Words) -> tuple[str, str, str, bool]:
    """VM, proof, how that is said, force. The proof is what the other host has to show now."""
    vm, given, force = words.take("a VM"), not words.flag("without-proof"), words.flag("force")
    words.end()
    name = _name(world, vm)
    shown = [
        side.machine.state.migrations[name].proof
        for side in world.hosts.values()
        if side.machine is not world.machine and name in side.machine.state.migrations
    ]
    proof = next((each for each in shown if each), "") if given else ""
    said = ", force" if force else ", with proof" if proof else ", no proof"
    return vm, proof, said, force


def _epoch(world: World, name: str) -> int:
    known = (side.machine.state.migrations.get(name) for side in world.hosts.values())
    return next((record.ownership_epoch for record in known if record is not None), 1)


def _name(world: World, vm: str) -> str:
    names = world.migrations.get(vm)
    if not names:
        raise ScenarioError(f"migrate: no migration of {vm} was begun")
    return names[-1]


def _tell(world: World, record: MigrationRecord, more: str = "") -> None:
    world.lanes.append(f"{record.role.name} {record.state.name}, epoch {record.ownership_epoch}{more}")


def _flipped(raw: bytes, sha256: str) -> tuple[bytes, str]:
    return raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:], sha256


def _hashed(change: Callable[[bytes], bytes]) -> Callable[[bytes, str], tuple[bytes, str]]:
    """A change that whoever made it has a digest for."""

    def damage(raw: bytes, _sha256: str) -> tuple[bytes, str]:
        changed = change(raw)
        return changed, hashlib.sha256(changed).hexdigest()

    return damage


def _edited(before: bytes, after: bytes) -> Callable[[bytes, str], tuple[bytes, str]]:
    def change(raw: bytes) -> bytes:
        text = zlib.decompress(raw[len(MAGIC) :])
        assert before in text, f"{before!r} is in the image"
        return MAGIC + zlib.compress(text.replace(before, after, 1), 1)

    return _hashed(change)


#: What can be wrong with an image.
_DAMAGE: Final[dict[str, Callable[[bytes, str], tuple[bytes, str]]]] = {
    "a-bit": _flipped,
    "truncated": lambda raw, sha256: (raw[:-1], sha256),
    "truncated-with-digest": _hashed(lambda raw: raw[:-1]),
    "foreign": _hashed(lambda raw: b"QEVM" + raw[4:]),
    "xcr0": _edited(b'"xcrs":[[0,', b'"xcrs":[[0,4'),
    "index": _edited(b'"index":0', b'"index":-1'),
    "seq": _edited(b'"next_seq":', b'"next_seq":0,"x":'),
}
_STEPS: Final[dict[str, Callable[[World, Words], None]]] = {
    "check": _check,
    "begin": _begin,
    "adopt": _adopt,
    "export": _export,
    "import": _import,
    "stage": _stage,
    "commit": _commit,
    "abort": _abort,
}
