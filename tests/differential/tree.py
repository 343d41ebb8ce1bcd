"""The data in the tree, and what judges it: every file once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

DATA: Final = Path(__file__).parent.parent / "data"

#: A kind and the files it reads.
FILES: Final[tuple[tuple[str, str], ...]] = (
    ("layouts", "kernel612_boot_config.json.gz"),
    ("layouts", "cpuid_layouts.json.gz"),
    ("sequences", "kernel612_sequences.json.gz"),
    ("sequences", "kernel612_sequences_legal_sample.json.gz"),
    ("xcr0", "kernel612_kvm_set_xcr_sample.json"),
    ("xcr0", "kvm_set_xcrs.json.gz"),
    ("xcr0", "kvm_guest_xsetbv_sample.json"),
    ("xcr0", "kvm_set_cpuid2_xcr0.json.gz"),
    ("xsave-verdicts", "kvm_set_xsave_verdicts_sample.json.gz"),
    ("xsave-buffers", "kvm_xsave_buffers_sample.json.gz"),
    ("prctl", "arch_prctl_6_18.json.gz"),
    ("ptrace", "ptrace_xstate_verdicts_sample.json.gz"),
    ("native-images", "native_xsave_images_sample.json.gz"),
    ("native-faults", "native_xrstor_faults_sample.json.gz"),
)


def arguments() -> Iterator[list[str]]:
    """The command line of each: kind and path."""
    for kind, name in FILES:
        yield [kind, str(DATA / name)]
