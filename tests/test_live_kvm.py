"""live-kvm: the model against the machine's real KVM; in short here, at length by the command."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fpu_core.config import boot
from fpu_core.cpuid import builtin_profile
from fpu_core.errors import Errno
from fpu_core.xfeature import XFEATURE_MASK_AVX512, XFEATURE_MASK_FPSSE
from host_agent.kvm.caps import kvm_caps
from host_agent.kvm.xsave_ioctl import get_xsave2
from tests.differential import __main__ as differential
from tests.differential import kvm_device, live_guest, live_kvm_pair
from tests.differential.kvm_device import KvmUnusableError, RealKvm
from tests.differential.live_kvm_values import legal_xcr0
from tools.build_guest import build, missing_tools


def _unusable() -> str | None:
    try:
        RealKvm().close()
    except KvmUnusableError as error:
        return str(error)
    return None


_WHY_NOT = _unusable()
needs_kvm = pytest.mark.skipif(_WHY_NOT is not None, reason=f"no real KVM to compare with: {_WHY_NOT}")


@needs_kvm
def test_the_real_kvm_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    """A few hundred random rounds on both sides; the seed and the command that repeats them come first."""
    seed = random.randrange(1 << 32)
    assert differential.main(["live-kvm", "--rounds", "400", "--seed", str(seed)]) == 0, capsys.readouterr().out
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"live-kvm: seed {seed}; python -m tests.differential live-kvm --rounds 400 --seed {seed}"
    assert last == "live-kvm: 400 rounds, 0 differ"


@needs_kvm
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        pytest.param("get_xsave2", lambda vcpu: bytes(vcpu.guest.uabi_size - 1) + b"\1", id="one byte of the state"),
        pytest.param("set_xcrs", lambda _vcpu, _xcrs, _flags=0: Errno.EINVAL, id="the errno of KVM_SET_XCRS"),
        pytest.param("set_cpuid2", lambda _vcpu, _cpuid: Errno.OK, id="the table of KVM_SET_CPUID2"),
        pytest.param("get_msrs", lambda _vcpu, _indices: [], id="the count of KVM_GET_MSRS"),
        pytest.param("register_writes", lambda *_args, **_keywords: [], id="a register"),
    ],
)
def test_one_wrong_answer_of_the_model_is_found(
    name: str, wrong: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the model gets wrong shows as a difference, and the status is 1."""
    monkeypatch.setattr(live_kvm_pair, name, wrong)
    assert differential.main(["live-kvm", "--rounds", "60", "--seed", "7"]) == 1
    assert not capsys.readouterr().out.endswith(" 0 differ\n")


@needs_kvm
def test_a_difference_that_does_not_repeat_is_told_and_not_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody interrupts, once: the rounds of that vCPU are done again, from the same draws."""
    # An early call: a later one may be of rounds that a real interrupt has had done again.
    calls = iter(range(10_000))
    monkeypatch.setattr(
        live_kvm_pair,
        "get_xsave2",
        lambda vcpu: bytes(vcpu.guest.uabi_size - 1) + b"\1" if next(calls) == 3 else get_xsave2(vcpu),
    )
    assert differential.main(["live-kvm", "--rounds", "60", "--seed", "7"]) == 0
    _, told, last = capsys.readouterr().out.splitlines()
    assert told.endswith("vCPUs agreed when their rounds were done again")
    assert last == "live-kvm: 60 rounds, 0 differ"


@needs_kvm
def test_every_kind_of_round_is_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No kind is left out by chance: each is reached, and ring 3 runs every routine this KVM has registers for."""
    kinds: set[str] = set()
    routines: set[str] = set()
    for kind in ("_xcrs", "_xsetbv", "_xsave", "_registers", "_msrs", "_cpuid"):
        inner: Callable[[live_kvm_pair.Pair], str] = getattr(live_kvm_pair.Pair, kind)

        def counted(
            self: live_kvm_pair.Pair, kind: str = kind, inner: Callable[[live_kvm_pair.Pair], str] = inner
        ) -> str:
            kinds.add(kind)
            text = inner(self)
            if kind == "_registers":
                routines.add(text.partition(" ")[0])
            return text

        counted.__name__ = kind
        monkeypatch.setattr(live_kvm_pair.Pair, kind, counted)
    assert differential.main(["live-kvm", "--rounds", "300", "--seed", "3"]) == 0, capsys.readouterr().out
    assert kinds == {"_xcrs", "_xsetbv", "_xsave", "_registers", "_msrs", "_cpuid"}
    with RealKvm() as kvm:
        supported = kvm.guest_supp()
    assert routines == {
        name for name, needed in live_guest.ROUTINES.items() if not needed & ~supported & ~XFEATURE_MASK_FPSSE
    }


def test_without_a_kvm_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No device is a printed skip, and no failure."""
    monkeypatch.setattr(kvm_device, "DEVICE", Path("/nowhere/kvm"))
    assert differential.main(["live-kvm", "--rounds", "1", "--seed", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "live-kvm: skipped: /nowhere/kvm: No such file or directory"


def test_the_guest_is_what_its_source_builds() -> None:
    """live_guest.bin, which is shipped since binutils may be missing, is live_guest.S."""
    why_not = missing_tools()
    if why_not is not None:
        pytest.skip(why_not)
    assert build(Path(live_guest.__file__).with_suffix(".S")) == live_guest.IMAGE


@pytest.mark.parametrize(
    ("supported", "count"),
    [
        pytest.param(0, 1, id="x87 alone"),
        pytest.param(0x3, 2, id="x87, with SSE"),
        pytest.param(0xE7, 4, id="AVX, AVX-512"),
        pytest.param(0x602E7, 16, id="AMX and PKRU as well"),
    ],
)
def test_legal_values_of_xcr0(supported: int, count: int) -> None:
    """Random XCR0 values start from all that are legal, AVX-512 whole or not at all."""
    masks = legal_xcr0(supported)
    assert len(masks) == count
    assert {mask & XFEATURE_MASK_AVX512 for mask in masks} <= {0, XFEATURE_MASK_AVX512}


def test_the_model_starts_as_a_vcpu_without_cpuid() -> None:
    """Both sides of a round start where KVM_CREATE_VCPU leaves a vCPU: no CPUID, XCR0 = 1, CR4.OSXSAVE clear."""
    config = boot(builtin_profile("sapphire-rapids"))
    vcpu = live_kvm_pair.ModelVcpu(config, kvm_caps(config)).vcpu
    assert (vcpu.guest_supported_xcr0, vcpu.xcr0, vcpu.cr4) == (0, 1, 0)
