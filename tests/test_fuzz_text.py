"""The parsers of texts under hostile input: some of it each time, and what was found once."""

from __future__ import annotations

import json

import pytest

from tests.fuzz_text.mutation import run
from tests.fuzz_text.targets import TARGETS, Target

_BY_NAME = {target.name: target for target in TARGETS}
#: Deeper than json and tomllib go before they give up with a RecursionError.
_DEEP = b"[" * 200_000
_AVX_OF_THE_SUPERVISOR = b"""CPU 0:
   0x00000000 0x00: eax=0x00000016 ebx=0x756e6547 ecx=0x6c65746e edx=0x49656e69
   0x00000001 0x00: eax=0x00050654 ebx=0x00200800 ecx=0x7ffefbbf edx=0xbfebfbff
   0x0000000d 0x00: eax=0x00000007 ebx=0x00000340 ecx=0x00000340 edx=0x00000000
   0x0000000d 0x01: eax=0x0000000f ebx=0x00000340 ecx=0x00000000 edx=0x00000000
   0x0000000d 0x02: eax=0x00000100 ebx=0x00000240 ecx=%s edx=0x00000000
"""


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_parser_answers_or_says_what_it_expected(target: Target) -> None:
    """Three hundred inputs that are the same each time; `python -m tests.fuzz_text` has others."""
    count, raw, error = run(target, seconds=0, seed=1, least=300)
    assert error is None, f"{raw!r}: {error!r}"
    assert count >= 300


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        pytest.param("config", b"[host]\npolicy = " + _DEEP, id="TOML deeper than its parser goes"),
        pytest.param("log", _DEEP, id="JSON deeper than its parser goes, in a log"),
        pytest.param("timeline", _DEEP, id="the same, in a timeline"),
        pytest.param("command", b"\x00" + _DEEP, id="the same, in a journal"),
        pytest.param("page-token", _DEEP, id="the same, from a caller"),
        pytest.param("timeline", b'{"event":"decision"}', id="a controller's event with half its fields"),
        pytest.param("log", b'{"config":{"type":"HostConfig","x":1}}', id="a configuration with a field nobody knows"),
        pytest.param("log", b'{"config":{"hex":"00"}}', id="a configuration that is none"),
        pytest.param("target", b"unix:/run/\xff", id="an address that is no text"),
        pytest.param("cpuid", _AVX_OF_THE_SUPERVISOR % b"0x00000001", id="AVX, which XCR0 has, as the supervisor's"),
        pytest.param(
            "cpuid",
            _AVX_OF_THE_SUPERVISOR.replace(b"0x00000100 ebx", b"0xffffffff ebx") % b"0x00000000",
            id="4 GiB of AVX",
        ),
    ],
)
def test_what_was_found_once(name: str, raw: bytes) -> None:
    """Each is refused with the documented error."""
    _BY_NAME[name].check(raw)


def test_a_processor_that_contradicts_itself_is_refused_by_its_leaf() -> None:
    """The error names the sub-leaf and what was expected there."""
    target = _BY_NAME["cpuid"]
    target.call(_AVX_OF_THE_SUPERVISOR % b"0x00000000")
    with pytest.raises(target.errors, match="cpuid leaf 0xD sub-leaf 2: expected a user component"):
        target.call(_AVX_OF_THE_SUPERVISOR % b"0x00000001")


def test_the_engine_notices() -> None:
    """An error that is not documented, one that does not say where, and one only for some inputs."""

    def parse(raw: bytes) -> None:
        if b"7" in raw:
            raise KeyError(raw)
        json.loads(raw)

    seeds = (b'{"a": 1, "b": [17, 2]}',)
    count, raw, error = run(Target("broken", parse, (ValueError,), "", seeds), seconds=0, seed=1, least=1000)
    assert (count, raw) == (1, seeds[0])
    assert isinstance(error, KeyError)
    _, _, error = run(Target("vague", json.loads, (ValueError,), "line", (b"{}",)), seconds=0, seed=1, least=1000)
    assert isinstance(error, AssertionError | RecursionError)
