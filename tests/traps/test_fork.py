"""What gRPC has begun does not survive a fork: the child has its sockets and none of its threads.

Source: grpc/grpc doc/fork_support.md: no active development. Guard: we begin programs (exec), and fork nothing.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("fpstated", "guest_agent", "host_agent", "vmm_controller", "fault_lab", "bench", "tools")

#: Whose pool is one of spawned processes: new programs, which have nothing of their parent.
SPAWNS = Path("fault_lab/campaign/executors.py")

#: A child calls on the connection of its parent; prints how that ended.
FORKED = """
import os, sys, tempfile, time
from concurrent import futures
import grpc

class Echo(grpc.GenericRpcHandler):
    def service(self, _details):
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)

address = f"unix:{tempfile.mkdtemp()}/s"
server = grpc.server(futures.ThreadPoolExecutor(1))
server.add_generic_rpc_handlers((Echo(),))
server.add_insecure_port(address)
server.start()
channel = grpc.insecure_channel(address)
call = channel.unary_unary("/bare/Echo")
call(b"")
child = os.fork()
if not child:
    try:
        call(b"", timeout=2)
        os._exit(0)
    except BaseException:
        os._exit(1)
for _ in range(80):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        print("answered" if status == 0 else "failed", flush=True)
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    os.waitpid(child, 0)
    print("hung", flush=True)
os._exit(0)
"""


def test_bare(note: Callable[..., None]) -> None:
    """In processes of their own."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=280, check=True)
    how = done.stdout.strip()
    note("a connection does not survive a fork", there=how != "answered", how=how)


def test_nobody_forks() -> None:
    """In the source: no fork, no pool of forked processes, nothing that runs between a fork and its exec."""
    found = [f"{path}:{line}: {what}" for path, line, what in _forks() if path != SPAWNS]
    assert found == []
    assert {what for path, _line, what in _forks() if path == SPAWNS} == {"multiprocessing", "ProcessPoolExecutor"}
    assert 'get_context("spawn")' in (ROOT / SPAWNS).read_text()


def _forks() -> Iterator[tuple[Path, int, str]]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Attribute(attr="fork" | "forkpty" | "vfork" as what):
                        yield path.relative_to(ROOT), node.lineno, what
                    case ast.Import(names=names) if any(each.name.startswith("multiprocessing") for each in names):
                        yield path.relative_to(ROOT), node.lineno, "multiprocessing"
                    case ast.ImportFrom(module=str(module)) if module.startswith("multiprocessing"):
                        yield path.relative_to(ROOT), node.lineno, module
                    case ast.Name(id="ProcessPoolExecutor") | ast.Attribute(attr="ProcessPoolExecutor"):
                        yield path.relative_to(ROOT), node.lineno, "ProcessPoolExecutor"
                    case ast.keyword(arg="preexec_fn"):
                        yield path.relative_to(ROOT), node.value.lineno, "preexec_fn"
                    case _:
                        pass
