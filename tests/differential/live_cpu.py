"""live-cpu: XSAVE, XSAVEOPT, XSAVEC, FXSAVE, XRSTOR and FXRSTOR on the running processor at ring 3, and on the model.

A round loads a known state, loads a random image under a random mask (often one that faults), asks XGETBV(1), and saves
under another mask into memory that holds something else. Compared are both faults, XINUSE, and every byte of that
memory. The processor's side is ``live_cpu.c``, built when it is needed.

A round takes a microsecond or so, and one in some ten thousand is interrupted in the middle. Whoever interrupts saves
and loads the registers, and may leave XINUSE set for a component that holds init values, which the SDM allows. So a
round that differs is executed once more, and differs if it still does.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fpstated.native_cpuid import NoCpuidError, native_profile
from fpu_core.config import FpuConfig, boot
from fpu_core.cpu import Cpu
from fpu_core.fpstate import MXCSR_INIT
from fpu_core.layout import MXCSR_OFFSET, XSAVE_EXTENDED_OFFSET, XSTATE_BV_OFFSET
from fpu_core.x87 import FCW_INIT
from fpu_core.xfeature import (
    XCOMP_BV_COMPACTED_FORMAT,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_USER_DYNAMIC,
    for_each_set_bit,
)
from fpu_core.xsave_insn import MemoryImage, XsaveInsn, fxrstor_from_memory, fxsave_to_memory
from fpu_core.xsave_insn import xrstor_from_memory as xrstor
from fpu_core.xsave_insn import xsave_to_memory as xsave
from tests.differential.report import Report, SkippedError

_SOURCE: Final = Path(__file__).with_suffix(".c")
_BUILD_DIR: Final = Path(__file__).parents[2] / "build"
_CFLAGS: Final = ("-O2", "-Wall", "-Wextra", "-Werror", "-mgeneral-regs-only")

_ROUND: Final = struct.Struct("<6Q")
_ANSWER: Final = struct.Struct("<3Q")
_U64_MAX: Final = (1 << 64) - 1
#: The order of the C helper's enums.
_LOADS: Final = ("xrstor", "fxrstor")
_SAVES: Final = ("xsave", "xsaveopt", "xsavec", "fxsave")
#: How many rounds the helper is given at a time.
_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Round:
    """What is executed. ``base`` is loaded first, whole; a shift is how far the image is from an aligned address."""

    load: str
    load_rfbm: int
    load_shift: int
    save: str
    save_rfbm: int
    save_shift: int
    base: bytes
    source: bytes
    target: bytes

    def encoded(self) -> bytes:
        """For the helper."""
        return (
            _ROUND.pack(
                _LOADS.index(self.load),
                self.load_rfbm,
                self.load_shift,
                _SAVES.index(self.save),
                self.save_rfbm,
                self.save_shift,
            )
            + self.base
            + self.source
            + self.target
        )

    def __str__(self) -> str:
        image = MemoryImage(bytearray(self.source))
        header = self.source[XSTATE_BV_OFFSET : XSTATE_BV_OFFSET + 64].hex()
        return (
            f"{self.load} rfbm={self.load_rfbm:#x} shift={self.load_shift} of xstate_bv={image.xstate_bv:#x} "
            f"xcomp_bv={image.xcomp_bv:#x} (header {header}), then {self.save} rfbm={self.save_rfbm:#x} "
            f"shift={self.save_shift}"
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a round: trap numbers (0: none), XGETBV(1), and the target as it is afterwards."""

    load_trap: int
    save_trap: int
    xinuse: int
    target: bytes


def run(rounds: int, seed: int) -> Report:
    """Execute ``rounds`` random rounds on both. Raises ``SkippedError`` where there is no compiler or no x86-64."""
    config, helper = running_processor(), build_helper()
    xcr0 = enabled(config, helper)
    report = Report("live-cpu", unit="rounds")
    rng = random.Random(seed)
    images = RoundMaker(config, xcr0, rng)
    interrupted = 0
    while report.rows < rounds:
        batch = [images.round() for _ in range(min(_BATCH, rounds - report.rows))]
        for each, theirs in zip(batch, on_processor(helper, batch), strict=True):
            report.rows += 1
            ours = on_model(config, xcr0, each)
            if theirs != ours:
                (again,) = on_processor(helper, [each])
                interrupted += again == ours
                compare(report, f"round {report.rows}: {each}", ours, again)
    if interrupted:
        report.notes.append(f"{interrupted} rounds agreed when they were executed again")
    return report


def running_processor() -> FpuConfig:
    """The processor this runs on, as the model boots on it."""
    try:
        config = boot(native_profile())
    except NoCpuidError as error:
        raise SkippedError(str(error)) from error
    if not config.xsave:
        raise SkippedError("this processor has no XSAVE")
    return config


def build_helper() -> Path:
    """Compile ``live_cpu.c`` into the build directory, unless what is there is newer."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SkippedError("no C compiler (cc)")
    helper = _BUILD_DIR / "live_cpu"
    if helper.exists() and helper.stat().st_mtime > _SOURCE.stat().st_mtime:
        return helper
    _BUILD_DIR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_BUILD_DIR) as folder:  # renamed when whole: two runs may build at a time
        made = Path(folder) / "live_cpu"
        done = subprocess.run([compiler, *_CFLAGS, "-o", made, _SOURCE], check=False, capture_output=True, text=True)
        if done.returncode:
            raise SkippedError(f"{_SOURCE.name} does not compile here: {done.stderr.strip()}")
        made.rename(helper)
    return helper


def enabled(config: FpuConfig, helper: Path) -> int:
    """XCR0 as the running kernel has it, which may be less than the processor could."""
    xcr0 = int.from_bytes(_fed(helper, XSAVE_EXTENDED_OFFSET.to_bytes(8, "little"))[:8], "little")
    if not xcr0:
        raise SkippedError("the kernel has not enabled XSAVE")
    if xcr0 & ~config.user.max_features:
        raise SkippedError(f"XCR0 is {xcr0:#x}, of which the model knows {config.user.max_features:#x}")
    return xcr0


def on_processor(helper: Path, rounds: list[Round]) -> list[Answer]:
    """Let the helper execute ``rounds``."""
    size = len(rounds[0].target)
    sent = size.to_bytes(8, "little") + b"".join(each.encoded() for each in rounds)
    answers = _fed(helper, sent)[8:]
    step = _ANSWER.size + size
    if len(answers) != step * len(rounds):
        raise ValueError(f"{helper}: expected {step * len(rounds)} bytes of answers, got {len(answers)}")
    return [_decoded(answers[at : at + step]) for at in range(0, len(answers), step)]


def feed(helper: Path, sent: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run the helper on ``sent``."""
    return subprocess.run([helper], input=sent, check=False, capture_output=True)


def _fed(helper: Path, sent: bytes) -> bytes:
    done = feed(helper, sent)
    if done.returncode:
        raise ValueError(f"{helper}: status {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _decoded(answer: bytes) -> Answer:
    load_trap, save_trap, xinuse = _ANSWER.unpack_from(answer)
    return Answer(load_trap, save_trap, xinuse, answer[_ANSWER.size :])


def on_model(config: FpuConfig, xcr0: int, each: Round) -> Answer:
    """The same on a modelled processor."""
    cpu = Cpu(0, config)
    cpu.xcr0 = xcr0
    xrstor(cpu, each.base, _U64_MAX)
    load = (
        fxrstor_from_memory(cpu, each.source, address=each.load_shift)
        if each.load == "fxrstor"
        else xrstor(cpu, each.source, each.load_rfbm, address=each.load_shift)
    )
    if load is not None:
        _signal_and_return(cpu)
    xinuse = cpu.xgetbv1() if config.caps.XGETBV1 else _U64_MAX
    target = bytearray(each.target)
    save = (
        fxsave_to_memory(cpu, target, address=each.save_shift)
        if each.save == "fxsave"
        else xsave(cpu, XsaveInsn(each.save), target, each.save_rfbm, address=each.save_shift)
    )
    return Answer(load or 0, save or 0, xinuse, bytes(target))


def _signal_and_return(cpu: Cpu) -> None:
    """What the registers go through when the fault becomes a signal: XSAVE into its frame, and XRSTOR from there.

    The kernel marks x87 and SSE as present in every frame. Source: arch/x86/kernel/fpu/signal.c, save_xstate_epilog().
    """
    frame = bytearray(cpu.config.user.max_size)
    xsave(cpu, XsaveInsn.XSAVE, frame, _U64_MAX)
    MemoryImage(frame).xstate_bv |= XFEATURE_MASK_FPSSE
    xrstor(cpu, frame, _U64_MAX)


def compare(report: Report, where: str, ours: Answer, theirs: Answer) -> bool:
    """Note the first thing that differs."""
    for name in ("load_trap", "xinuse", "save_trap"):
        if not report.compare(where, name, hex(getattr(ours, name)), hex(getattr(theirs, name))):
            return False
    differing = [at for at, (left, right) in enumerate(zip(ours.target, theirs.target, strict=True)) if left != right]
    if not differing:
        return True
    at = differing[0]
    what = f"{len(differing)} bytes of the saved image, the first at {at}"
    return report.compare(where, what, ours.target[at : at + 16].hex(), theirs.target[at : at + 16].hex())


class RoundMaker:
    """Draws rounds: mostly well-formed, often wrong in one place."""

    def __init__(self, config: FpuConfig, xcr0: int, rng: random.Random) -> None:
        self.config = config
        self.rng = rng
        #: What images are drawn for. Dynamic features need a permission and are left alone.
        self.xcr0 = xcr0 & ~XFEATURE_MASK_USER_DYNAMIC
        self.size = config.user_size(self.xcr0) + 64
        self.saves = [name for name in _SAVES if name == "fxsave" or getattr(config.caps, name.upper())]

    def round(self) -> Round:
        """Draw one."""
        rng = self.rng
        target = bytearray(rng.randbytes(self.size))
        if rng.random() < 0.5:
            target[XSTATE_BV_OFFSET:XSAVE_EXTENDED_OFFSET] = bytes(64)
        return Round(
            load=rng.choices(_LOADS, (9, 1))[0],
            load_rfbm=self._rfbm(),
            load_shift=self._shift(),
            save=rng.choice(self.saves),
            save_rfbm=self._rfbm(),
            save_shift=self._shift(),
            base=self._loadable(self._mask()),
            source=self._source(),
            target=bytes(target),
        )

    def _mask(self) -> int:
        return self.rng.choice((self.xcr0, self.rng.getrandbits(64) & self.xcr0, 0))

    def _rfbm(self) -> int:
        return self.rng.choice((_U64_MAX, self.xcr0, self._mask(), self.rng.getrandbits(64)))

    def _shift(self) -> int:
        return self.rng.choices((0, 16, self.rng.randrange(64)), (30, 1, 1))[0]

    def _content(self) -> bytearray:
        """Random bytes; some components all zero, which some processors take for their init state."""
        image = bytearray(self.rng.randbytes(self.size))
        offsets = self.config.table.offsets(self.xcr0, compacted=False)
        for nr in for_each_set_bit(self.rng.getrandbits(64) & self.rng.getrandbits(64) & self.xcr0):
            image[offsets[nr] : offsets[nr] + self.config.table.size_bytes(nr)] = bytes(
                self.config.table.size_bytes(nr)
            )
        if self.rng.random() < 0.3:
            image[0:MXCSR_OFFSET] = FCW_INIT.to_bytes(MXCSR_OFFSET, "little")
        mxcsr = self.rng.choice((MXCSR_INIT, self.rng.getrandbits(16), self.rng.getrandbits(32)))
        self._put(image, MXCSR_OFFSET, 4, mxcsr if self.rng.random() < 0.1 else mxcsr & self.config.mxcsr_mask)
        image[XSTATE_BV_OFFSET:XSAVE_EXTENDED_OFFSET] = bytes(64)
        return image

    def _loadable(self, xstate_bv: int) -> bytes:
        image = self._content()
        self._put(image, MXCSR_OFFSET, 4, int.from_bytes(image[24:28], "little") & self.config.mxcsr_mask)
        MemoryImage(image).xstate_bv = xstate_bv
        return bytes(image)

    def _source(self) -> bytes:
        rng, image = self.rng, self._content()
        header = MemoryImage(image)
        header.xstate_bv = self._mask()
        if self.config.caps.XSAVEC and rng.random() < 0.4:
            layout = rng.choice((self.xcr0, header.xstate_bv, header.xstate_bv | self._mask(), self._mask()))
            header.xcomp_bv = layout | XCOMP_BV_COMPACTED_FORMAT
        if rng.random() < 0.15:
            at = XSTATE_BV_OFFSET + rng.randrange(64)
            image[at] ^= 1 << rng.randrange(8)
        return bytes(image)

    @staticmethod
    def _put(image: bytearray, at: int, length: int, value: int) -> None:
        image[at : at + length] = value.to_bytes(length, "little")
