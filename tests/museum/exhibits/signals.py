"""Bugs of signal frames and of ptrace: registers that go out to a program, or come in from one."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Mutant, Patch

EXHIBITS: Final = (
    Mutant(
        id="B2",
        title="A signal handler starts under the XFD of another task",
        fix="x86/fpu: Ensure XFD state on signal delivery; October 2025, 388eff89",
        breaks="live_registers_are_owned",
        patches=(
            Patch(
                "fpu_core.sigframe",
                "    cpu.xfd_update_state(fpu.fpstate.xfd)\n    _restore_init_fpstate(",
                "    _restore_init_fpstate(",
            ),
        ),
    ),
    Mutant(
        id="B15",
        title="sigreturn faults for ever on a frame that says it is small",
        fix="x86/fpu: Stop relying on userspace for info to fault in xsave buffer; January 2024, d877550eaf2d",
        cve="CVE-2024-26603",
        breaks="sigreturn ends: what is faulted in is what XRSTOR reads, by the kernel's own size",
        patches=(
            Patch(
                "fpu_core.sigframe",
                "        if vector is not Vector.PF or not memory.fault_in(address, fpu.fpstate.user_size):\n",
                "        (said,) = _U32.unpack_from(memory.data, address - memory.base + SW_BYTES_OFFSET + 16)\n"
                "        if vector is not Vector.PF or not memory.fault_in(address, said):\n",
            ),
        ),
    ),
    Mutant(
        id="B26",
        title="The PKRU in a signal frame does not count",
        fix="x86/pkeys: Ensure updated PKRU value is XRSTOR'd; November 2024, ae6012d72fa6",
        breaks="sigreturn brings back the PKRU that the frame has",
        patches=(
            Patch(
                "fpu_core.sigframe",
                "(mask & cpu.xcr0 & cpu.xinuse) | XFEATURE_MASK_PKRU)\n",
                "mask & cpu.xcr0 & cpu.xinuse)\n",
            ),
        ),
    ),
    Mutant(
        id="B27",
        title="A signal frame claims components that were not written",
        fix="a follow-up to B26; 2025",
        breaks="XSTATE_BV of a frame is of components that were written",
        patches=(
            Patch(
                "fpu_core.sigframe",
                "(mask & cpu.xcr0 & cpu.xinuse) | XFEATURE_MASK_PKRU)\n",
                "cpu.xinuse | XFEATURE_MASK_PKRU)\n",
            ),
        ),
    ),
    Mutant(
        id="B28",
        title="A signal frame carries bytes of the kernel's",
        fix="x86/fpu/signal: Initialize sw_bytes in save_xstate_epilog(); November 2021, 52d0b8b18776",
        breaks="every byte of a frame is defined",
        patches=(
            Patch(
                "fpu_core.sigframe",
                "    memory.copy_to_user(address + SW_BYTES_OFFSET, sw_bytes)\n",
                "    memory.copy_to_user(address + SW_BYTES_OFFSET, sw_bytes[:20] + bytes(fpstate.regs[:28]))\n",
            ),
        ),
    ),
    Mutant(
        id="B33",
        title="A PKRU that a debugger writes is lost",
        fix="x86/fpu: Allow PKRU to be (once again) written by ptrace; November 2022",
        breaks="after a ptrace write PKRU is what was written, or 0 where its bit was clear",
        patches=(Patch("fpu_core.regset", "    set_task_pkru(fpu, result.pkru or 0)\n", ""),),
    ),
    Mutant(
        id="B35",
        title="A failed sigreturn leaves its registers to their last owner",
        fix="x86/fpu: Invalidate FPU state after a failed XRSTOR from a user buffer; June 2021, d8778e393afa",
        breaks="valid_registers_are_the_image",
        patches=(
            Patch(
                "fpu_core.sigframe",
                "        if fpu.need_load:\n            cpu.owner = None\n        return vector\n",
                "        return vector\n",
            ),
        ),
    ),
    Mutant(
        id="B37",
        title="ptrace takes a part of the state for the whole",
        fix="x86/fpu: Limit xstate copy size in xstateregs_set(); June 2021",
        breaks="a ptrace write is of the whole state, or EFAULT",
        patches=(
            Patch(
                "fpu_core.regset",
                "    if len(buf) != config.user.max_size:\n        return Errno.EFAULT\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="B38",
        title="sigreturn looks for its magic word where the program says",
        fix="x86/fpu: Refine and simplify the magic number check during signal return; late 2024",
        breaks="the second magic word is looked for at the kernel's own size",
        patches=(
            Patch(
                "fpu_core.sigframe",
                "    if fpu.host.config.rules.sigframe_says_its_size:\n",
                "    if fpu.host.config.xsave:\n",
            ),
        ),
    ),
)
