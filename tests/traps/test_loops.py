"""Several event loops in a process make grpc.aio's poller say BlockingIOError: noise on the loop that came second.

Source: grpc/grpc#42357, #25364, PR 36096. Guard: one loop a process, said in one place for each command. Only tests
have two: the host of ``fpstated.testing`` runs on a thread of its own.
"""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fpstated.testing_host import host_on_a_thread
from guest_agent.aio_host import AsyncHost
from guest_agent.host import Host
from host_agent.state import HostConfig
from tests.traps.bare import TIMEOUT_S

ROOT = Path(__file__).parents[2]
PACKAGES = ("fpstated", "guest_agent", "host_agent", "vmm_controller", "fault_lab")

#: Two loops that serve and call, each itself; prints what their exception handlers were told.
TWO_LOOPS = """
import asyncio, sys, tempfile, threading
from pathlib import Path
from tests.traps.bare import bare

told = []

async def work():
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(repr(context["exception"])))
    with tempfile.TemporaryDirectory() as folder:
        async with bare(Path(folder)) as server:
            for _ in range(1500):
                await server.unary("Echo")(b"")

threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(told), *sorted(set(told)))
"""


def test_bare(note: Callable[..., None]) -> None:
    """In a process of its own."""
    done = subprocess.run([sys.executable, "-c", TWO_LOOPS], capture_output=True, text=True, timeout=280, check=True)
    noise = int(done.stdout.split()[0])
    note("a second event loop makes noise", there=noise > 0, how=f"{noise} in 3,000 calls")


def test_each_command_has_one_loop() -> None:
    """In the source: who runs a loop, and who makes one."""
    found = {
        (str(path.relative_to(ROOT)), node.attr)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("new_event_loop", "run_forever", "run")
        if isinstance(node.value, ast.Name) and node.value.id in ("asyncio", "loop")
    }
    assert found == {
        ("fault_lab/live/wires.py", "new_event_loop"),
        ("fpstated/demo.py", "run"),
        ("fpstated/host_command.py", "run"),
        ("fpstated/proxy_command.py", "run"),
        ("fpstated/testing_host.py", "new_event_loop"),
        ("fpstated/testing_host.py", "run_forever"),
        ("vmm_controller/run.py", "run"),
    }


@pytest.mark.asyncio
async def test_a_host_on_a_thread_answers_nonetheless() -> None:
    """Two loops, and threads that block besides: whatever is said, every call has its answer."""
    with host_on_a_thread(HostConfig()) as server, ThreadPoolExecutor() as pool:

        def make(nr: int) -> None:
            with Host(server.address, timeout_s=TIMEOUT_S) as host:
                host.create_vm(f"t{nr}")

        loop = asyncio.get_running_loop()
        blocking = [loop.run_in_executor(pool, make, nr) for nr in range(8)]
        async with AsyncHost(server.address, timeout_s=TIMEOUT_S) as host:
            await asyncio.gather(*(host.create_vm(f"a{nr}") for nr in range(100)), *blocking)
            assert len(await host.list_vms()) == 108
