"""Rules of the state machine of the core: what happens to tasks and CPUs beside the swap."""

from __future__ import annotations

from abc import abstractmethod

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fpu_core.altstack import sigaltstack
from fpu_core.errors import Errno
from fpu_core.sched import IrqContext, switch_to
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA, XFEATURE_PKRU
from tests.core import life
from tests.core.samples import random_bytes
from tests.core.world import PROCESSES, Task, World

index = st.integers(0, 7)
cpu_nr = st.integers(0, 1)
seeds = st.integers(0, 2**32)


class LifeRules(RuleBasedStateMachine):
    """For ``CoreMachine``, which has the world and chooses in it."""

    world: World

    @abstractmethod
    def task(self, nr: int) -> Task:
        """Any task."""

    @abstractmethod
    def user(self, nr: int, cpu: int) -> Task | None:
        """A task in user mode, running."""

    # -- signals, debuggers, signal stacks -----------------------------------------------------------------------------

    @rule(
        nr=index, cpu=cpu_nr, stack=st.sampled_from([65536, 65536, 11952, 4096]), absent=st.integers(0, 16), other=index
    )
    def signal(self, nr: int, cpu: int, stack: int, absent: int, other: int) -> None:
        """A signal: the frame has what the registers had, and the handler starts with none of it."""
        task = self.user(nr, cpu)
        if task is not None and len(task.frames) < 3:
            life.take_signal(self.world, task, stack, absent, self.task(other))

    @rule(nr=index, cpu=cpu_nr, spoilt=st.sampled_from([False, False, True]), absent=st.integers(0, 3))
    def sigreturn(self, nr: int, cpu: int, spoilt: bool, absent: int) -> None:
        """The handler returns, perhaps with a frame it has spoilt."""
        task = self.user(nr, cpu)
        if task is not None and task.frames:
            life.return_from_signal(self.world, task, spoilt=spoilt, absent=absent)

    @rule(nr=index, component=st.sampled_from([1, 2, 5, 6, 9, 17]), seed=seeds)
    def ptrace(self, nr: int, component: int, seed: int) -> None:
        """A debugger writes a register of a task that is in user mode."""
        task = self.task(nr)
        if task.fpu.task_fpstate is None:
            size = 4 if component == XFEATURE_PKRU else self.world.config.table.size_bytes(component)
            life.ptrace(self.world, task, component, random_bytes(seed, size))

    @rule(nr=index, size=st.sampled_from([None, 0, 2048, 11836, 11837, 11952]))
    def altstack(self, nr: int, size: int | None) -> None:
        """sigaltstack(2): refused only for what is too small for what the process may use."""
        task = self.task(nr)
        wide = bool(task.fpu.leader.perm.state_perm & XFEATURE_MASK_XTILE_DATA)
        fits = size is None or size > (11836 if wide else 2047)
        assert sigaltstack(task.fpu, size) is (Errno.OK if fits else Errno.ENOMEM)

    # -- the kernel ----------------------------------------------------------------------------------------------------

    @rule(process=st.sampled_from(PROCESSES), user_worker=st.booleans(), cpu=cpu_nr)
    def worker(self, process: str, user_worker: bool, cpu: int) -> None:
        """A kernel thread or user worker gets a CPU, made if it is the first time."""
        name = f"{process}/worker {user_worker}"
        fpu = self.world.workers.get(name) or life.add_worker(self.world, process, name, user_worker=user_worker)
        switch_to(self.world.cpus[cpu], fpu)

    @rule(cpu=cpu_nr, context=st.sampled_from([IrqContext.SOFTIRQ, IrqContext.HARDIRQ]), seed=seeds)
    def interrupt(self, cpu: int, context: IrqContext, seed: int) -> None:
        """An interrupt's code uses the FPU."""
        life.interrupt(self.world.cpus[cpu], context, random_bytes(seed, 16))

    @rule(cpu=cpu_nr)
    def idle(self, cpu: int) -> None:
        """The CPU goes idle."""
        life.idle(self.world.cpus[cpu])

    @rule()
    def hotplug(self) -> None:
        """CPU 1 goes offline and comes back."""
        life.off_and_on(self.world, self.world.cpus[1])

    @rule()
    def sleep(self) -> None:
        """The machine sleeps and wakes."""
        life.sleep_and_wake(self.world)
