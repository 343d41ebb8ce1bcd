"""Random commands of the life of registers, for the property machine of the host."""

from __future__ import annotations

from hypothesis import strategies as st

from fpu_core.permission import XcompOp
from host_agent.commands import Command
from host_agent.task_commands import (
    ArchPrctl,
    CreateWorker,
    DeliverSignal,
    EditFrame,
    EnableShadowStack,
    IdleCpu,
    Interrupt,
    OfflineCpu,
    OnlineCpu,
    PtraceGet,
    PtraceSet,
    SetAltstack,
    SigReturn,
    SuspendHost,
    SwapOutFrame,
)


def task_commands(task: str) -> st.SearchStrategy[Command]:
    """What can be asked of a task, sensible and not."""
    ops = [*(int(op) for op in XcompOp), 0x1026, -1]
    sizes = st.sampled_from([None, -1, 0, 2048, 4096, 11952])
    of_task = st.just(task)
    return st.one_of(
        st.builds(ArchPrctl, task=of_task, op=st.sampled_from(ops), arg=st.sampled_from([0, 17, 18, 1 << 40])),
        st.builds(SetAltstack, task=of_task, size_bytes=sizes),
        st.builds(EnableShadowStack, task=of_task, ssp=st.sampled_from([-1, 0x5000])),
        st.builds(
            Interrupt,
            task=of_task,
            context=st.sampled_from(["softirq", "hardirq", "nmi"]),
            hits=st.sampled_from(["task", "kernel-fpu", "fpregs-lock", "moon"]),
        ),
        st.builds(DeliverSignal, task=of_task, altstack=st.booleans()),
        st.builds(
            EditFrame,
            task=of_task,
            offset=st.sampled_from([-1, 24, 464, 512, 528, 2816, 11008]),
            data=st.binary(max_size=8),
        ),
        st.builds(SwapOutFrame, task=of_task, offset=st.sampled_from([-1, 0, 2815, 4096, 11007])),
        st.builds(SigReturn, task=of_task),
        st.builds(PtraceGet, task=of_task, length=st.sampled_from([-1, 0, 576, 577, 65536])),
        st.builds(PtraceSet, task=of_task, data=st.sampled_from([b"", bytes(577), bytes(2816), bytes(11008)])),
    )


def vm_commands(vm: str) -> st.SearchStrategy[Command]:
    """What can be asked of the CPUs that a VM runs on."""
    cpus = st.sampled_from([-1, 0, 1, 1, 2])
    return st.one_of(
        st.builds(CreateWorker, vm=st.just(vm), task_id=st.sampled_from(["w0", "w1"]), user_worker=st.booleans()),
        st.builds(OfflineCpu, vm=st.just(vm), cpu=cpus),
        st.builds(OnlineCpu, vm=st.just(vm), cpu=cpus),
        st.builds(IdleCpu, vm=st.just(vm), cpu=cpus),
        st.just(SuspendHost(vm=vm)),
    )
