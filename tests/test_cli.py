"""The command line as somebody meets it: help that helps, and mistakes that are named."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fpstated.console import HumanLines

COMMANDS = ["host", "controller", "guest", "demo", "replay", "cpuid"]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fpstated", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_command() -> None:
    """``--help`` lists them, and each has a help of its own that ends with status 0."""
    listed = _run("--help")
    assert listed.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", listed.stdout, flags=re.MULTILINE), listed.stdout
        assert _run(command, "--help").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        pytest.param(["host", "--profile", "pentium"], 2, "--profile: expected", id="a profile nobody has"),
        pytest.param(["host", "--profile", "@/nowhere"], 2, "No such file", id="a dump that is not there"),
        pytest.param(["host", "--kernel-rules", "2.6"], 2, "one of 6.18, 6.12", id="a kernel nobody models"),
        pytest.param(["host", "--listen", "127.0.0.1:0"], 1, "insecure", id="TCP without the flag"),
        pytest.param(["host", "--listen", "8.8.8.8:0", "--insecure-tcp"], 1, "8.8.8.8", id="TCP beyond loopback"),
        pytest.param(["controller", "--policy", "retry-harder"], 2, "retry-harder", id="a policy nobody knows"),
        pytest.param(["controller", "--policy", "retry:tries=many"], 2, "tries", id="a parameter that is no number"),
        pytest.param(["guest", "--vm", "a", "--script", "/nowhere.txt"], 2, "/nowhere.txt", id="a script not there"),
        pytest.param(
            ["guest", "--vm", "a", "--kind", "script", "--wait", "0.2", "--host", "unix:/nowhere.sock"],
            1,
            "/nowhere.sock",
            id="no host there",
        ),
        pytest.param(["cpuid", "pentium"], 2, "sapphire-rapids", id="a built-in processor nobody has"),
        pytest.param(["frobnicate"], 2, "No such command", id="a command nobody has"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], status: int, said: str) -> None:
    """One line says what was wrong and what was expected; no traceback."""
    done = _run(*arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_socket_in_use_is_refused(tmp_path: Path) -> None:
    """Two hosts on one socket would each know half of everything."""
    path = tmp_path / "host.sock"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        done = _run("host", "--listen", f"unix:{path}")
    assert (done.returncode, "in use" in done.stderr) == (1, True), done.stderr


def test_a_log_is_not_overwritten(tmp_path: Path) -> None:
    """``--record`` makes a new file or none."""
    log = tmp_path / "run.log"
    log.write_text("precious")
    done = _run("host", "--listen", f"unix:{tmp_path}/host.sock", "--record", str(log))
    assert (done.returncode, log.read_text()) == (1, "precious")
    assert "exists" in done.stderr


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    """A log that was cut or edited says where."""
    log = tmp_path / "run.log"
    log.write_text('{"config": {"type": "HostConfig"}}\n{"at": 1, "command": {"type": "MakeCoffee"}}\n')
    done = _run("replay", str(log))
    assert (done.returncode, "line 2" in done.stderr) == (2, True), done.stderr


def test_the_running_processor_is_a_profile(tmp_path: Path) -> None:
    """``fpstated cpuid`` prints a dump that ``--profile @FILE`` takes; where there is no CPUID it says so."""
    done = _run("cpuid")
    if done.returncode:
        pytest.skip(done.stderr.strip())
    assert re.search(r"^   0x0000000d 0x00: eax=", done.stdout, flags=re.MULTILINE)
    dump = tmp_path / "mine.txt"
    dump.write_text(done.stdout)
    bad = _run("host", "--profile", f"@{dump}", "--listen", "127.0.0.1:0")
    assert "insecure" in bad.stderr, "the profile was accepted, the address was not"


def test_lines_for_a_person_are_those_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --timeline a guest and a controller say the same in words; what is no event is passed over."""
    lines = HumanLines(Console(width=200, highlight=False))
    lines.write('{"t":5000000,"lane":"G","vcpu":"vms/a/vcpus/0","text":"HLT","tone":"plain"}\nnoise\n')
    decision = {"event": "decision", "decision": "RETRY_AFTER", "delay_s": 0.1, "attempt": 1, "generation": 1}
    lines.write(json.dumps(decision | {"vcpu": "vms/a/vcpus/0", "time_s": 0}) + "\n")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "      0.0 ms  G  a/0     HLT"
    assert second.endswith("U  a/0     decide RETRY_AFTER 100 ms   (attempt 1, generation 1)")
