"""Any method by its full name: what to send, and what the gate says to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from host_agent.service.access.matrix import MATRIX
from tests.service.world import TIMEOUT_S, details


def method_descriptor(path: str) -> MethodDescriptor:
    """The descriptor of `/package.Service/Method`."""
    _, service, name = path.split("/")
    descriptor: MethodDescriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    return descriptor


def request_for(path: str, vm: str) -> Message:
    """A request that names ``vm`` wherever it can name something; for a session, one that is not there."""
    request: Message = message_factory.GetMessageClass(method_descriptor(path).input_type)()
    for field, value in _names(vm):
        _set(request, field, value)
    if "hello" in request.DESCRIPTOR.fields_by_name:
        request.hello.session = "sessions/none"  # type: ignore[attr-defined]
    if "filters" in request.DESCRIPTOR.fields_by_name:
        request.filters.add(parent=vm)  # type: ignore[attr-defined]
    if path.endswith("/Evaluate"):
        request.scope.vm = vm  # type: ignore[attr-defined]
    return request


def _names(vm: str) -> Iterator[tuple[str, str]]:
    yield from (("name", vm), ("parent", vm), ("vm", vm), ("vm_id", vm.removeprefix("vms/")), ("task", f"{vm}/tasks/t"))
    yield from (("vcpu", f"{vm}/vcpus/0"), ("vcpus", f"{vm}/vcpus/0"), ("session", "sessions/none"))


def _set(request: Message, field: str, value: str) -> None:
    found = request.DESCRIPTOR.fields_by_name.get(field)
    if found is None or found.message_type is not None:
        return
    if found.is_repeated:
        getattr(request, field).append(value)
    else:
        setattr(request, field, value)


async def refusal(channel: grpc.aio.Channel, path: str, request: Message) -> tuple[grpc.StatusCode, str]:
    """Call, and return code and reason: OK where an answer, or a first message, or nothing for a moment, came."""
    method = method_descriptor(path)
    call = _start(channel, method, path, request)
    try:
        if method.server_streaming:
            await asyncio.wait_for(call.read(), TIMEOUT_S)
        else:
            await asyncio.wait_for(call, TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        reasons = [detail.reason for detail in details(error) if hasattr(detail, "reason")] if _rich(error) else []
        return error.code(), reasons[0] if reasons else ""
    finally:
        call.cancel()
    return grpc.StatusCode.OK, ""


def _rich(error: grpc.aio.AioRpcError) -> bool:
    return "grpc-status-details-bin" in dict(error.trailing_metadata() or ())


def _start(channel: grpc.aio.Channel, method: MethodDescriptor, path: str, request: Message) -> Any:  # noqa: ANN401
    kind = ("stream" if method.client_streaming else "unary") + "_" + ("stream" if method.server_streaming else "unary")
    answer = message_factory.GetMessageClass(method.output_type)
    start = getattr(channel, kind)(
        path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
    )
    return start(_once(request)) if method.client_streaming else start(request, timeout=TIMEOUT_S)


async def _once(request: Message) -> Any:  # noqa: ANN401 -- an asynchronous iterator of one request
    yield request


def every_method() -> list[str]:
    """The methods of the matrix."""
    return list(MATRIX)
