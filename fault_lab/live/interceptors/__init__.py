"""Interceptors that make calls fail, for any client and server of gRPC: off unless faults are handed in and armed.

    channel = grpc.intercept_channel(channel, client_interceptor(CallFaults(faults)))
    channel = grpc.aio.insecure_channel(address, interceptors=aio_client_interceptors(CallFaults(faults)))
    server = grpc.server(pool, interceptors=[server_interceptor(CallFaults(faults))])
    server = grpc.aio.server(interceptors=[aio_server_interceptor(CallFaults(faults))])

``docs/live.md`` says what is asked when.
"""

from fault_lab.live.interceptors.aio_client import aio_client_interceptors
from fault_lab.live.interceptors.aio_server import aio_server_interceptor
from fault_lab.live.interceptors.calls import CallFaults
from fault_lab.live.interceptors.client import client_interceptor
from fault_lab.live.interceptors.headers import HeaderFaults
from fault_lab.live.interceptors.server import server_interceptor

__all__ = [
    "CallFaults",
    "HeaderFaults",
    "aio_client_interceptors",
    "aio_server_interceptor",
    "client_interceptor",
    "server_interceptor",
]
