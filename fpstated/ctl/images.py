"""``fpstated ctl export`` and ``import``: a VM as a file."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import grpc
import typer
from fpstate.v1 import migration_pb2, migration_pb2_grpc

from fpstated.ctl.connection import REFUSED, complain, connection
from fpstated.ctl.image_file import ImageFileError, read_chunks, read_header, write_image
from fpstated.ctl.names import vm_name
from fpstated.ctl.show import Json, print_json, size
from fpstated.ctl.vms import VmArgument
from fpstated.progress import Step, progress
from guest_agent.error import host_error


def export_vm(
    ctx: typer.Context,
    vm: VmArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.", dir_okay=False)],
    as_json: Json = False,
) -> None:
    """Write the image of a VM to a file. No vCPU of it may be in the guest; nothing changes on the host.

    Example: fpstated ctl export a a.fpstvm
    """
    found = connection(ctx)
    if file.exists():
        raise typer.BadParameter(f"{file} is there; expected a new file")
    stub = migration_pb2_grpc.MigrationServiceStub(found.channel)
    messages = found.stream(stub.ExportVm, migration_pb2.ExportVmRequest(name=vm_name(vm)))
    try:
        header = next(messages).image_header
        with progress(f"export {header.vm}", header.size_bytes) as step:
            write_image(file, header, (message.chunk for message in messages), step)
    except (ImageFileError, OSError) as error:
        complain(str(error))
        raise typer.Exit(REFUSED) from None
    if as_json:
        print_json(header)
    else:
        print(f"{header.vm}: {size(header.size_bytes)} as of revision {header.revision} in {file}")


def import_vm(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What export has written.", exists=True, dir_okay=False)],
    vm: Annotated[str, typer.Option("--vm", metavar="VM", help="The name it gets; the one it had, if not given.")] = "",
    as_json: Json = False,
) -> None:
    """Make a VM from a file. It appears when the whole image has come, and not at all otherwise.

    Example: fpstated ctl import a.fpstvm --vm b
    """
    found = connection(ctx)
    try:
        header = read_header(file)
        start = migration_pb2.ImportVmStart(
            request_id=str(uuid.uuid4()), name=vm_name(vm) if vm else "", image_header=header
        )
        stub = migration_pb2_grpc.MigrationServiceStub(found.channel)
        with progress(f"import {start.name or header.vm}", header.size_bytes) as step:
            answer = _imported(stub, start, file, step)
    except (ImageFileError, OSError) as error:
        complain(str(error))
        raise typer.Exit(REFUSED) from None
    if as_json:
        print_json(answer)
    else:
        print(f"{answer.name}: {size(header.size_bytes)} from {file}, uid {answer.uid}")


def _imported(
    stub: migration_pb2_grpc.MigrationServiceStub, start: migration_pb2.ImportVmStart, file: Path, step: Step
) -> migration_pb2.ImportVmResponse:
    """Send it. What is wrong with the file while it is read is raised as such, and the host keeps nothing."""
    broken: list[Exception] = []

    def messages() -> Iterator[migration_pb2.ImportVmRequest]:
        yield migration_pb2.ImportVmRequest(start=start)
        try:
            for chunk in read_chunks(file, start.image_header, step):
                yield migration_pb2.ImportVmRequest(chunk=chunk)
        except (ImageFileError, OSError) as error:
            broken.append(error)
            raise

    try:
        return stub.ImportVm(messages())
    except grpc.RpcError as error:
        if broken:
            raise broken[0] from error
        raise host_error(error) from error
