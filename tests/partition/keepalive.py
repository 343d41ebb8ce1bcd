"""How long it takes until a peer whose machine is gone is found: ``python -m tests.partition --keepalive``.

A guest's and a controller's channel each watch exits from a namespace that is then cut off for good, both ways, and say
when their watch has ended. The host's metrics say when it has given the streams up. Nothing else may end them: a watch
has no lease, and nobody closes a connection.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import grpc
from fpstate.v1 import exit_pb2, exit_pb2_grpc

from fpstated.link.tls import ClientTls
from guest_agent.channel import CHANNEL_OPTIONS as OF_GUESTS
from tests.partition.network import Namespaces
from tests.partition.world import World
from vmm_controller.run import CHANNEL_OPTIONS as OF_CONTROLLERS

#: As docs/reliability.md has it: time and timeout of each side's keepalive together.
CLIENT_S: Final = 35.0
HOST_S: Final = 80.0
#: For a machine that does much else, and for the moment at which the last ping was sent.
_SPARE_S: Final = 10.0
_OPTIONS: Final = {"guest": OF_GUESTS, "controller": OF_CONTROLLERS}
_NODES: Final = {"guest": "g0", "controller": "c0"}


def measure() -> tuple[dict[str, float], list[str]]:
    """How long each side took, in seconds, and what was not as documented."""
    with tempfile.TemporaryDirectory(prefix="fpstated-keepalive-") as folder:
        world = World(Path(folder))
        try:
            if not isinstance(world.network, Namespaces) or world.certificates is None:
                return {}, [f"skipped: no network namespaces here: {world.no_namespaces}"]
            return _measured(world, world.certificates.folder)
        finally:
            world.close()


def _measured(world: World, certificates: Path) -> tuple[dict[str, float], list[str]]:
    watches = {kind: _watch(world, kind, certificates) for kind in _NODES}
    try:
        for watch in watches.values():
            assert watch.stdout is not None
            assert watch.stdout.readline().strip() == "watching"
        if world.host.metrics()["fpstated_exit_watchers"] != len(watches):
            return {}, ["the host does not see the watchers"]
        for node in _NODES.values():
            world.network.cut(node, to_host=True, to_node=True)
        return _waited(world, watches, time.monotonic())
    finally:
        for watch in watches.values():
            watch.kill()
            watch.communicate()


def _watch(world: World, kind: str, certificates: Path) -> subprocess.Popen[str]:
    node = _NODES[kind]
    command = [*world.network.prefix(node), sys.executable, "-m", "tests.partition.keepalive"]
    command += [world.network.address(node), kind, node, str(certificates)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _waited(
    world: World, watches: dict[str, subprocess.Popen[str]], cut_at: float
) -> tuple[dict[str, float], list[str]]:
    took: dict[str, float] = {}
    limits = {"guest": CLIENT_S, "controller": CLIENT_S, "host": HOST_S}
    while len(took) < len(limits) and time.monotonic() < cut_at + HOST_S + _SPARE_S:
        ended = {kind for kind, watch in watches.items() if watch.poll() is not None}
        if world.host.metrics()["fpstated_exit_watchers"] == 0:
            ended.add("host")
        for who in ended - took.keys():
            took[who] = time.monotonic() - cut_at
        time.sleep(0.2)
    late = [who for who, limit_s in limits.items() if took.get(who, 1e9) > limit_s + _SPARE_S]
    return took, [f"{who} has not found out within {limits[who]:g} s: {took.get(who)}" for who in late]


def _main(address: str, kind: str, node: str, certificates: str) -> None:
    """A watch on a channel of that kind, until it ends."""
    folder, role = Path(certificates), "guest" if kind == "guest" else "controller"
    tls = ClientTls(folder / f"{role}-{node}.pem", folder / f"{role}-{node}.key", folder / "ca.pem")
    with grpc.secure_channel(address, tls.credentials(), options=_OPTIONS[kind]) as channel:
        vm = f"vms/{node}" if kind == "guest" else ""
        watch = exit_pb2_grpc.ExitServiceStub(channel).WatchExits(
            exit_pb2.WatchExitsRequest(vm=vm), wait_for_ready=True
        )
        next(watch)
        print("watching", flush=True)
        try:
            for _response in watch:
                pass
        except grpc.RpcError as error:
            print(error.code(), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
