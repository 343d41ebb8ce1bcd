"""Host, guest and controller as processes with mutual TLS: what a certificate allows works, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TIMEOUT_S = 60


def command(*arguments: str | Path) -> list[str]:
    """A command line of ours."""
    return [sys.executable, "-m", "fpstated", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run it until the block ends, then ask it to stop; its status has to be 0."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command(*arguments), stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(TIMEOUT_S)
        assert status == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA and certificates, made by the command."""
    folder = tmp_path_factory.mktemp("certs") / "dev"
    assert run("certs", "init", folder).returncode == 0
    for identity in ("guest/web", "controller/main"):
        assert run("certs", "issue", folder, identity).returncode == 0
    assert run("certs", "issue", folder, "host/h1", "--host", "localhost").returncode == 0
    return folder


def tls(folder: Path, name: str) -> list[str | Path]:
    """The three flags."""
    files = {"cert": folder / f"{name}.pem", "key": folder / f"{name}.key", "ca": folder / "ca.pem"}
    return [part for flag, path in files.items() for part in (f"--tls-{flag}", path)]


def ready(process: subprocess.Popen[str]) -> str:
    """The address that a host says it has."""
    assert process.stdout is not None
    address: str = json.loads(process.stdout.readline())["ready"]
    return address


def test_a_guest_and_a_controller_by_their_certificates(folder: Path) -> None:
    """The guest runs its own VM and no other's; the controller takes control; who has no certificate gets nowhere."""
    with running("host", "--listen", "localhost:0", "--timeline", *tls(folder, "host-h1")) as host:
        address = ready(host)
        guest: list[str | Path] = ["guest", "--kind", "script", "--host", address]
        own = run(*guest, "--vm", "web", *tls(folder, "guest-web"))
        assert own.returncode == 0, own.stderr
        other = run(*guest, "--vm", "other", *tls(folder, "guest-web"))
        assert other.returncode == 1
        assert "'vms/other' is not its own" in other.stderr
        as_controller = run(*guest, "--vm", "web", *tls(folder, "controller-main"))
        assert "the role controller does not have" in as_controller.stderr
        plain = run(*guest, "--vm", "web", "--wait", "1")
        assert plain.returncode == 1
        with running("controller", "--host", address, "--timeline", *tls(folder, "controller-main")) as controller:
            assert controller.stdout is not None
            assert json.loads(controller.stdout.readline())["event"] == "control"


def test_an_operator_moves_a_vm(folder: Path, tmp_path: Path) -> None:
    """Both hosts ask for certificates: one set for both, another for the target; what a role may not is refused."""
    folder = shutil.copytree(folder, tmp_path / "dev")
    issued = run("certs", "issue", folder, "operator/admin")
    assert issued.returncode == 0, issued.stderr
    admin = tls(folder, "operator-admin")
    flags = ("--ephemeral", "--listen", "localhost:0", "--timeline", *tls(folder, "host-h1"))
    with running("host", *flags) as source, running("host", *flags) as target:
        here, there = ready(source), ready(target)
        for words in (("vms", "create", "a"), ("vcpus", "create", "a/0")):
            done = run("ctl", "--address", here, *admin, *words)
            assert done.returncode == 0, done.stderr
        guest = [str(part).replace("--tls", "--target-tls") for part in tls(folder, "guest-web")]
        refused = run("ctl", "--address", here, *admin, "migrate", "a", there, *guest)
        assert refused.returncode == 1
        assert "ROLE_NOT_ALLOWED" in refused.stderr
        done = run("ctl", "--address", here, *admin, "migrate", "a", there)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1].startswith(f"vms/a: at {there} now, under epoch 2")


def test_beyond_loopback_there_is_no_plaintext(folder: Path) -> None:
    """The host does not start, and says what is missing."""
    done = run("host", "--listen", "0.0.0.0:0", "--insecure-tcp")
    assert done.returncode == 1
    assert "--tls-cert, --tls-key, --tls-ca" in done.stderr
    done = run("host", "--listen", "0.0.0.0:0", *tls(folder, "host-h1")[:4])
    assert done.returncode == 2
    assert "tls-ca: expected beside the others" in done.stderr
    done = run("host", "--listen", "localhost:0", *tls(folder, "nobody"))
    assert done.returncode == 1
    assert "nobody.pem: No such file" in done.stderr


def test_the_socket_has_the_mode_and_the_group_that_were_asked_for(tmp_path: Path) -> None:
    """And its folder can be passed through by the group, if it was made here."""
    import grp

    group = grp.getgrgid(os.getgid()).gr_name
    path = tmp_path / "run" / "host.sock"
    flags = ["--socket-mode", "0660", "--socket-group", group, "--timeline"]
    with running("host", "--listen", f"unix:{path}", *flags) as host:
        ready(host)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == os.getgid()
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o710


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        pytest.param(["--socket-mode", "0666"], "nothing for everybody, got 0666", id="everybody"),
        pytest.param(["--socket-mode", "0060"], "expected 0600 or 0660", id="not its owner"),
        pytest.param(["--socket-mode", "rw"], "--socket-mode: expected an octal mode", id="no mode"),
        pytest.param(["--socket-group", "no-such-group"], "there is no group 'no-such-group'", id="no group"),
    ],
)
def test_a_socket_that_cannot_be_is_refused(tmp_path: Path, flags: list[str], complaint: str) -> None:
    """Before anything listens."""
    done = run("host", "--listen", f"unix:{tmp_path}/s", *flags)
    assert done.returncode in (1, 2)
    assert complaint in done.stderr
    assert not (tmp_path / "s").exists()


def test_certs_says_what_it_made(folder: Path) -> None:
    """One line per certificate; and what cannot be made is status 2 and one line."""
    shown = run("certs", "show", folder)
    assert [line.partition(":")[0] for line in shown.stdout.splitlines()] == [
        "ca.pem",
        "controller-main.pem",
        "guest-web.pem",
        "host-h1.pem",
    ]
    again = run("certs", "init", folder)
    assert (again.returncode, again.stdout) == (2, "")
    assert "is there already; --force writes over it" in again.stderr
