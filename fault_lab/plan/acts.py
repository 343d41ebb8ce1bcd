"""What threads of a VMM, its ioctls and the kernel can do in a simulated run: names for `workload.tasks` of a plan."""

from __future__ import annotations

from typing import Final

ACTS: Final = {
    "create": "a new thread of the VMM",
    "clone": "clone(2), as a thread or as a process",
    "exec": "execve(2) by a child process",
    "exit": "a thread or a child process ends",
    "schedule": "a task, a worker too, gets a CPU, wherever it was",
    "preempt": "a task loses its CPU",
    "use": "a task loads a register and reads it back; tile data may grow its container, or end in a signal",
    "read": "a task reads a register",
    "pkru": "a task writes its PKRU",
    "permit": "arch_prctl(ARCH_REQ_XCOMP_PERM) for tile data",
    "altstack": "sigaltstack(2)",
    "shadow-stack": "arch_prctl(ARCH_SHSTK_ENABLE)",
    "signal": "a signal with a handler",
    "lie-in-frame": "the handler writes another size into its frame, which the kernel must not believe",
    "spoil-frame": "the handler writes into reserved bytes of its frame, which the kernel must refuse",
    "swap-out": "a page of the frame is swapped out",
    "sigreturn": "the handler returns",
    "ptrace": "a debugger reads the registers, changes one and writes them back",
    "ptrace-pkru": "a debugger writes PKRU",
    "ptrace-part": "a debugger writes a part of the state, which must be refused",
    "worker": "a kernel thread, or a user worker of the VMM's process, is made",
    "kernel-fpu": "the kernel uses the FPU where a task runs",
    "interrupt": "a soft or hard interrupt comes in upon a task, a kernel_fpu section or fpregs_lock()",
    "idle": "a CPU goes idle",
    "offline": "a CPU goes down",
    "online": "a CPU comes back up",
    "suspend": "the machine sleeps and wakes",
    "create-vcpu": "a vCPU more than the plan has, which no agent plays",
    "delete-vcpu": "one of those goes",
    "set-cpuid": "KVM_SET_CPUID2 with some of the features",
    "set-xsave": "KVM_SET_XSAVE of a buffer that is good, short or wrong",
    "carry-xsave": "KVM_GET_XSAVE2 of a vCPU, and KVM_SET_XSAVE of that on another or on the same",
    "set-xcrs": "KVM_SET_XCRS",
    "set-msrs": "KVM_SET_MSRS of XFD",
    "reset": "RESET of the VM",
}


def acts_table() -> str:
    """The table of docs/simulator.md."""
    rows = [f"| `{name}` | {what} |" for name, what in ACTS.items()]
    return "\n".join(["| act | what it is |", "|---|---|", *rows]) + "\n"
