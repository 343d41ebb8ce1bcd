"""``fpstated ctl`` where something is in the way: no host, no right, another holder, a wrong word; and in the shell."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fpstate.v1 import exit_pb2, exit_pb2_grpc, vcpu_pb2, vcpu_pb2_grpc

from fpstated.ctl.names import byte_limit, exit_name, vcpu_name, vm_name
from tests.ctl.rig import TIMEOUT_S, WAIT_S, CtlHost, ctl_host, run_ctl

COMMAND = str(Path(sys.executable).with_name("fpstated"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CtlHost]:
    """A host with two VMs and a vCPU that is stuck."""
    with ctl_host(tmp_path_factory.mktemp("host")) as found:
        for line in ("vms create a", "vms create ab", "vms permission a --request 18", "vcpus create a/0"):
            assert found.ctl(line).status == 0
        found.get_stuck("vms/a/vcpus/0")
        yield found


# -- in the way --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["host info", "vms list", "watch", "resolve a/0/1 retry", "export a /tmp/none/x"])
def test_where_no_host_is(line: str, tmp_path: Path) -> None:
    """Status 3, and one line that says where nobody answers and what to do."""
    done = run_ctl("--address", f"unix:{tmp_path}/none.sock", *line.split())
    assert (done.status, done.out.replace("  REVISION  CHANGE   NAME\n", "")) == (3, "")
    assert done.err.count("\n") == 1
    assert done.err.startswith(f"fpstated ctl: no host answers at unix:{tmp_path}/none.sock (")
    assert done.err.endswith("or: fpstated host\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--address nowhere vms list", "--address: expected unix:PATH or HOST:PORT, got 'nowhere'"),
        ("--timeout 0 vms list", "--timeout: expected"),
        ("--tls-cert x vms list", "tls-key, tls-ca: expected beside the others"),
        ("vms get", "Missing argument 'VM'"),
        ("vms list --frobnicate", "No such option: --frobnicate"),
        ("vms frobnicate", "No such command 'frobnicate'"),
        ("limits set host", "Missing argument 'BYTES|none'"),
        ("exits list --state gone", "'gone' is not one of"),
        ("import /nowhere/x", "does not exist"),
        ("vcpus get a/zero", "expected a vCPU: VM/INDEX or vms/VM/vcpus/INDEX, got 'a/zero'"),
    ],
)
def test_what_is_asked_for_wrongly(line: str, said: str) -> None:
    """Status 2, before any host is asked."""
    done = run_ctl(*line.split())
    assert done.status == 2
    assert said in " ".join(done.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("name", "setting"), [("FPSTATED_CTL_ADDRESS", "flag"), ("file", "address = 'unix:/from/the/file.sock'")]
)
def test_the_address_comes_from_where_others_do(
    name: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flag, environment, file."""
    config = tmp_path / "config.toml"
    config.write_text("[ctl]\naddress = 'unix:/from/the/file.sock'\n")
    monkeypatch.setenv("FPSTATED_CONFIG", str(config))
    expected = "unix:/from/the/file.sock"
    if name != "file":
        monkeypatch.setenv(name, expected := "unix:/from/the/environment.sock")
    done = run_ctl("vms", "list")
    assert (done.status, setting and expected in done.err) == (3, True)
    assert "unix:/by/flag.sock" in run_ctl("--address", "unix:/by/flag.sock", "vms", "list").err


@pytest.mark.parametrize(
    ("identity", "line", "said"),
    [
        ("controller/c", "vms create x", "ROLE_NOT_ALLOWED: the role controller does not have"),
        ("controller/c", "sessions list", "local/controller/c needs another role; docs/security.md"),
        ("guest/a", "vms list", "ROLE_NOT_ALLOWED"),
        ("guest/a", "vms get b", "NOT_OWNER"),
        ("guest/a", "watch", "ROLE_NOT_ALLOWED"),
        ("fault/f", "drain", "ROLE_NOT_ALLOWED"),
    ],
)
def test_what_a_role_may_not(identity: str, line: str, said: str, tmp_path: Path) -> None:
    """Status 1, one line, and what stands in the way."""
    with ctl_host(tmp_path, "--socket-identity", identity) as host:
        done = host.ctl(line)
        assert done.status == 1
        assert said in done.err
        assert done.err.count("\n") == 1


def test_a_controller_that_holds_the_vm_decides(host: CtlHost) -> None:
    """Refused with its name; afterwards the exit is as it was, and with the control given up it can be decided."""
    stub = exit_pb2_grpc.ExitServiceStub(host.channel)
    held = stub.AcquireControl(
        exit_pb2.AcquireControlRequest(scope="vms/a", controller_name="somebody"), timeout=TIMEOUT_S
    )
    done = host.ctl("resolve a/0/1 pause")
    assert done.status == 1
    assert re.fullmatch(
        r"fpstated ctl: CONTROL_HELD: 'somebody' controls vms/a "
        r"\(held by somebody, free in \d+ s at the latest unless it renews its lease\)\n",
        done.err,
    )
    assert '"generation": "1"' in host.ctl("exits get a/0/1 --json").out
    released = exit_pb2.ReleaseControlRequest(control=held.control, epoch=held.epoch)
    stub.ReleaseControl(released, timeout=TIMEOUT_S)
    assert host.ctl("resolve a/0/1 pause").status == 0
    stub.AcquireControl(exit_pb2.AcquireControlRequest(scope="vms/a", controller_name="x"), timeout=TIMEOUT_S)


def test_all_pages_are_one_answer(tmp_path: Path) -> None:
    """More than the host gives at once."""
    with ctl_host(tmp_path) as host:
        assert host.ctl("vms create a").status == 0
        stub = vcpu_pb2_grpc.VcpuServiceStub(host.channel)
        for index in range(1001):
            stub.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent="vms/a", index=index), timeout=TIMEOUT_S)
        lines = host.ctl("vcpus list a").out.splitlines()
        assert [line.split()[0] for line in lines[1:]] == [f"vms/a/vcpus/{index}" for index in range(1001)]


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "text", "name"),
    [
        (vm_name, "a", "vms/a"),
        (vm_name, "vms/a", "vms/a"),
        (vcpu_name, "a/0", "vms/a/vcpus/0"),
        (vcpu_name, "vms/a/vcpus/0", "vms/a/vcpus/0"),
        (vcpu_name, "a/007", "vms/a/vcpus/7"),
        (exit_name, "a/0/12", "vms/a/vcpus/0/exits/12"),
        (exit_name, "vms/a/vcpus/0/exits/12", "vms/a/vcpus/0/exits/12"),
        (byte_limit, "none", None),
        (byte_limit, "10752", 10752),
        (byte_limit, "64K", 65536),
        (byte_limit, "1GiB", 1 << 30),
        (byte_limit, "2 mb", 2 << 20),
    ],
)
def test_names_as_people_type_them(read: object, text: str, name: object) -> None:
    """Short or full."""
    assert callable(read)
    assert read(text) == name


# -- the terminal and the shell ----------------------------------------------------------------------------------------


def _on_a_terminal(command: list[str], **environment: str) -> str:
    """What a command writes to a terminal."""
    parent, child = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", **environment}
    variables = {key: value for key, value in variables.items() if value}
    with subprocess.Popen(command, stdout=child, stdin=child, stderr=child, env=variables):
        os.close(child)
        written = b""
        try:
            while data := os.read(parent, 65536):
                written += data
        except OSError:
            pass  # EIO: the other side has closed it
        os.close(parent)
    return written.decode()


def test_colours_are_for_terminals(host: CtlHost) -> None:
    """There alone, and not where NO_COLOR is set; JSON is indented for people and one line for programs."""
    command = [COMMAND, "ctl", "--address", host.address, "vms", "list"]
    assert "\x1b[1m" in _on_a_terminal(command, NO_COLOR="")
    assert "\x1b[3" not in _on_a_terminal(command, NO_COLOR="1")
    piped = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "\x1b" not in piped
    assert len(host.ctl("host info --json").out.splitlines()) == 1
    assert len(_on_a_terminal([*command, "--json"]).splitlines()) > 10


def test_nothing_is_cut_off_in_a_pipe(host: CtlHost) -> None:
    """However narrow somebody's window is."""
    command = [COMMAND, "ctl", "--address", host.address, "host", "info"]
    narrow = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "COLUMNS": "20"}
    ).stdout
    assert narrow == host.ctl("host info").out
    assert "…" not in _on_a_terminal(command, COLUMNS="40")


SHELLS = {
    "bash": {"COMP_WORDS": "{line}", "COMP_CWORD": "{words}", "_FPSTATED_COMPLETE": "complete_bash"},
    "zsh": {"_TYPER_COMPLETE_ARGS": "{line}", "_FPSTATED_COMPLETE": "complete_zsh"},
    "fish": {
        "_TYPER_COMPLETE_ARGS": "{line}",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_FPSTATED_COMPLETE": "complete_fish",
    },
}


def _completed(shell: str, line: str, address: str) -> subprocess.CompletedProcess[str]:
    """What the shell is told for the last word of a line."""
    words = len(line.split(" ")) - 1
    asked = {key: text.format(line=line, words=words) for key, text in SHELLS[shell].items()}
    variables = {**os.environ, **asked, "FPSTATED_CTL_ADDRESS": address}
    return subprocess.run([COMMAND], env=variables, capture_output=True, text=True, check=False, timeout=WAIT_S)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("fpstated ctl vms get ", {"a", "ab"}),
        ("fpstated ctl vms get vms/ab", {"vms/ab"}),
        ("fpstated ctl vcpus get a", {"a/0"}),
        ("fpstated ctl exits get a/0", {"a/0/1"}),
        ("fpstated ctl watch --vm ab", {"ab"}),
        ("fpstated ctl resolve a/0/1 kill", {"kill-vcpu", "kill-vm"}),
    ],
)
def test_names_are_completed_live(host: CtlHost, shell: str, line: str, names: set[str]) -> None:
    """VMs, vCPUs and the exits that wait, short or full, in every shell; words of the command line as well.

    A key that a busy machine does not answer in time completes nothing, so it is pressed again.
    """
    until = time.monotonic() + WAIT_S
    found: set[str] = set()
    while not names <= found and time.monotonic() < until:
        done = _completed(shell, line, host.address)
        assert done.stderr == ""
        found = set(re.findall(r"[\w/-]+", done.stdout.replace("_arguments '*: :((", "")))
    assert names <= found
    assert not found & {"b", "vms/b"}


@pytest.mark.parametrize("shell", SHELLS)
def test_where_no_host_is_nothing_is_completed_and_nothing_said(shell: str) -> None:
    """A key costs half a second at most, and no text."""
    done = _completed(shell, "fpstated ctl vms get ", "unix:/nowhere/host.sock")
    assert done.stderr == ""
    assert not re.search("vms|nowhere|rror", done.stdout)
