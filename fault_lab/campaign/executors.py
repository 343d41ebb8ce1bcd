"""Where blocks are run: anything that is a ``concurrent.futures.Executor``.

Processes of this machine by default. Beyond one machine a Dask cluster (extra ``dask``) or a Ray cluster (extra
``ray``), whose workers need the same release of fpstated.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class NoClusterError(ValueError):
    """There is no such cluster, or the extra that speaks to it is not installed."""


@contextmanager
def processes(jobs: int) -> Iterator[Executor]:
    """``jobs`` processes of this machine.

    They are spawned and not forked: gRPC's threads do not survive a fork. An interrupt is the parent's to deal with; a
    parent that is killed takes them with it.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin() -> None:
    """What a worker does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with the parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "it was spawned"
    parent.join()
    os._exit(1)  # a thread cannot end its process in another way, and nobody waits for the block


@contextmanager
def dask(address: str, jobs: int) -> Iterator[Executor]:
    """The workers of a Dask scheduler at ``address``; with ``local``, ``jobs`` processes started here."""
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise NoClusterError("dask: this needs: pip install 'fpstated[dask]'") from error
    if address != "local":
        try:
            client = distributed.Client(address, timeout=10)
        except (OSError, ValueError) as error:
            raise NoClusterError(f"dask: no scheduler at {address!r}: {error}") from error
        with client, client.get_executor(pure=False) as executor:
            yield executor
        return
    cluster = distributed.LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None, host="127.0.0.1")
    with cluster, distributed.Client(cluster) as client, client.get_executor(pure=False) as executor:
        yield executor


@contextmanager
def ray(address: str) -> Iterator[Executor]:
    """The workers of a Ray cluster; one is started here where ``address`` is ``local``."""
    try:
        library: Any = import_module("ray")
    except ImportError as error:
        raise NoClusterError("ray: this needs: pip install 'fpstated[ray]'") from error
    try:
        library.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    except (ConnectionError, ValueError) as error:
        raise NoClusterError(f"ray: no cluster at {address!r}: {error}") from error
    try:
        with _RayExecutor(library) as executor:
            yield executor
    finally:
        library.shutdown()


class _RayExecutor(Executor):
    """Ray's tasks by the interface of the standard library; ``ObjectRef.future`` gives its futures already."""

    def __init__(self, library: Any) -> None:  # noqa: ANN401 -- an extra, and its types with it
        self._task: Any = library.remote(_call)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start a task."""
        found: Future[T] = self._task.remote(fn, args, kwargs).future()
        return found


def _call(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    return fn(*args, **kwargs)
