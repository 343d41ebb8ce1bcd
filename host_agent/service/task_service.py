"""TaskService: the VMM's threads as host tasks."""

from __future__ import annotations

from typing import Final

from fpstate.v1 import task_pb2, task_pb2_grpc

from fpu_core.errors import Errno
from host_agent.commands import (
    CloneTask,
    Command,
    CreateTask,
    ExecTask,
    ExitTask,
    KernelFpu,
    PreemptTask,
    ScheduleTask,
    UseFeature,
)
from host_agent.errors import kvm_errno
from host_agent.service.agent import HostAgent
from host_agent.service.layers import Context
from host_agent.service.paging import page
from host_agent.service.translate.fields import header, request_id, task_name, vm_name
from host_agent.service.translate.outcome import growth_to_proto
from host_agent.service.translate.vcpu import task_to_proto
from host_agent.task_commands import SetAltstack
from host_agent.tasks import FeatureUse

#: How a use of a feature can end. A vector that is not #NM reaches the task as the signal Linux makes of it.
#: Source: arch/x86/kernel/traps.c, exc_invalid_op() and exc_general_protection().
_USES: Final[dict[str, task_pb2.UseFeatureResult.ValueType]] = {
    "": task_pb2.USE_FEATURE_RESULT_DONE,
    "SIGILL": task_pb2.USE_FEATURE_RESULT_SIGILL,
    "#UD": task_pb2.USE_FEATURE_RESULT_SIGILL,
    "SIGSEGV": task_pb2.USE_FEATURE_RESULT_SIGSEGV,
    "#GP": task_pb2.USE_FEATURE_RESULT_SIGSEGV,
}


class TaskService(task_pb2_grpc.TaskServiceServicer):
    """Host tasks."""

    def __init__(self, agent: HostAgent) -> None:
        self._agent = agent

    async def CreateTask(self, request: task_pb2.CreateTaskRequest, context: Context) -> task_pb2.CreateTaskResponse:
        """Make a task."""
        command = CreateTask(
            vm=vm_name("parent", request.parent),
            task_id=request.task_id,
            request_id=request_id(request.request_id),
        )
        task = self._submit(command)
        return task_pb2.CreateTaskResponse(header=header(self._agent.state), task=task)

    async def CloneTask(self, request: task_pb2.CloneTaskRequest, context: Context) -> task_pb2.CloneTaskResponse:
        """clone(2)."""
        command = CloneTask(
            task=task_name("task", request.task),
            task_id=request.new_task_id,
            thread=request.thread,
            request_id=request_id(request.request_id),
        )
        task = self._submit(command)
        return task_pb2.CloneTaskResponse(header=header(self._agent.state), task=task)

    async def ExecTask(self, request: task_pb2.ExecTaskRequest, context: Context) -> task_pb2.ExecTaskResponse:
        """execve(2)."""
        task = self._submit(ExecTask(task=task_name("task", request.task), request_id=request_id(request.request_id)))
        return task_pb2.ExecTaskResponse(header=header(self._agent.state), task=task)

    async def ExitTask(self, request: task_pb2.ExitTaskRequest, context: Context) -> task_pb2.ExitTaskResponse:
        """The task ends."""
        self._agent.submit(ExitTask(task=task_name("task", request.task), request_id=request_id(request.request_id)))
        return task_pb2.ExitTaskResponse(header=header(self._agent.state))

    async def ScheduleTask(
        self, request: task_pb2.ScheduleTaskRequest, context: Context
    ) -> task_pb2.ScheduleTaskResponse:
        """Put the task on a CPU."""
        command = ScheduleTask(
            task=task_name("task", request.task), cpu=request.cpu, request_id=request_id(request.request_id)
        )
        task = self._submit(command)
        return task_pb2.ScheduleTaskResponse(header=header(self._agent.state), task=task)

    async def PreemptTask(self, request: task_pb2.PreemptTaskRequest, context: Context) -> task_pb2.PreemptTaskResponse:
        """Take the task off its CPU."""
        task = self._submit(
            PreemptTask(task=task_name("task", request.task), request_id=request_id(request.request_id))
        )
        return task_pb2.PreemptTaskResponse(header=header(self._agent.state), task=task)

    async def UseFeature(self, request: task_pb2.UseFeatureRequest, context: Context) -> task_pb2.UseFeatureResponse:
        """The task's own code uses a register."""
        command = UseFeature(
            task=task_name("task", request.task),
            feature=request.feature,
            offset=request.offset,
            data=request.data,
            length=request.length,
            request_id=request_id(request.request_id),
        )
        use: FeatureUse = self._agent.submit(command)
        return task_pb2.UseFeatureResponse(
            header=header(self._agent.state),
            result=_USES[use.signal],
            reallocated=growth_to_proto(use.growth) if use.growth is not None else None,
            data=use.data,
        )

    async def KernelFpu(self, request: task_pb2.KernelFpuRequest, context: Context) -> task_pb2.KernelFpuResponse:
        """The kernel uses the FPU on the task's CPU: one section."""
        task = self._submit(KernelFpu(task=task_name("task", request.task), request_id=request_id(request.request_id)))
        return task_pb2.KernelFpuResponse(header=header(self._agent.state), task=task)

    async def SetAltstack(self, request: task_pb2.SetAltstackRequest, context: Context) -> task_pb2.SetAltstackResponse:
        """sigaltstack(2)."""
        command = SetAltstack(
            task=task_name("task", request.task),
            size_bytes=request.size_bytes if request.HasField("size_bytes") else None,
            request_id=request_id(request.request_id),
        )
        errno: Errno = self._agent.submit(command)
        if errno is not Errno.OK:
            raise kvm_errno(errno, "sigaltstack")
        state = self._agent.state
        vm, task = state.task(command.task)
        return task_pb2.SetAltstackResponse(header=header(state), task=task_to_proto(state, vm, task))

    async def GetTask(self, request: task_pb2.GetTaskRequest, context: Context) -> task_pb2.GetTaskResponse:
        """Return one task."""
        state = self._agent.state
        vm, task = state.task(task_name("name", request.name))
        return task_pb2.GetTaskResponse(header=header(state), task=task_to_proto(state, vm, task))

    async def ListTasks(self, request: task_pb2.ListTasksRequest, context: Context) -> task_pb2.ListTasksResponse:
        """List the tasks of a VM by name."""
        state = self._agent.state
        vm = state.vm(vm_name("parent", request.parent))
        tasks, token = page(
            vm.tasks.values(), lambda task: (task.id,), size=request.page_size, token=request.page_token
        )
        self._agent.history.wanted()
        return task_pb2.ListTasksResponse(
            header=header(state), tasks=[task_to_proto(state, vm, task) for task in tasks], next_page_token=token
        )

    def _submit(self, command: Command) -> task_pb2.Task:
        vm, task = self._agent.submit(command)
        return task_to_proto(self._agent.state, vm, task)
