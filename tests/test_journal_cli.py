"""``fpstated journal``: what it says, and the status it says it with."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fpstated.cli import app
from tests.journal.rig import history


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A stopped host's state directory."""
    history().save(tmp_path / "state")
    return tmp_path / "state"


def run(*arguments: object) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(app, ["journal", *map(str, arguments)])


def test_a_whole_directory(directory: Path) -> None:
    """Status 0, and the digest that recovery leads to, which replay finds as well."""
    done = run("verify", directory)
    assert done.exit_code == 0
    assert done.stdout.startswith("journal: whole: records 1 to 13, revision ")
    digest = done.stdout.split()[-1]
    assert digest == history().machine.digest()
    assert run("replay", directory, "--digest", digest).exit_code == 0
    other = run("replay", directory, "--through", 5, "--digest", digest)
    assert other.exit_code == 1
    assert "record 5" in other.stdout
    assert f"expected {digest}" in other.stderr
    assert run("verify", directory, "--no-replay").stdout.count("digest") == 0


def test_a_damaged_directory(directory: Path) -> None:
    """Status 1, what is wrong, and the command that repairs; that one says what it gave up."""
    connection = sqlite3.connect(directory / "journal.sqlite")
    connection.execute("UPDATE record SET body = zeroblob(40) WHERE n = 12")
    connection.commit()
    connection.close()
    done = run("verify", directory)
    assert done.exit_code == 1
    assert "record 12 is damaged" in done.stderr
    assert "--truncate-after 11" in done.stderr
    assert "damaged" in done.stdout
    assert run("dump", directory).exit_code == 1
    assert run("replay", directory).exit_code == 1
    repaired = run("verify", directory, "--truncate-after", 11)
    assert repaired.exit_code == 0
    assert repaired.stdout.splitlines()[0] == "journal: gave up 2 records after record 11"
    assert "whole: records 1 to 11" in repaired.stdout


def test_a_dump_is_for_people_or_programs(directory: Path) -> None:
    """Every record with what came of it; as JSON, with the command as a command log has it."""
    lines = run("dump", directory, "--after", 2, "--through", 4).stdout.splitlines()
    assert lines[0].split()[:3] == ["3", "rev", "2"]
    assert "CreateVm" in lines[0]
    assert '"refused":"VM_EXISTS"' in lines[1]
    records = [json.loads(line) for line in run("dump", directory, "--json").stdout.splitlines()]
    assert [record["n"] for record in records] == list(range(1, 14))
    assert records[0]["command"]["type"] == "Boot"
    assert set(records[0]) == {"n", "revision", "at", "rules", "command", "outcome"}


def test_backup_and_restore(directory: Path, tmp_path: Path) -> None:
    """There and back, with the same digest said each time; never over something that is there."""
    backed = run("backup", directory, tmp_path / "copy")
    restored = run("restore", tmp_path / "copy", tmp_path / "new")
    assert backed.exit_code == restored.exit_code == 0
    assert backed.stdout.split()[-1] == restored.stdout.split()[-1] == history().machine.digest()
    again = run("restore", tmp_path / "copy", directory)
    assert again.exit_code == 1
    assert "is not empty" in again.stderr


def test_what_is_no_state_directory(tmp_path: Path) -> None:
    """A directory that does not exist is a mistake of the command line; an empty one is said to be no journal."""
    assert run("verify", tmp_path / "nowhere").exit_code == 2
    for command in ("verify", "dump", "replay"):
        done = run(command, tmp_path)
        assert done.exit_code == 1
        assert "journal" in done.stderr


def test_help_says_when_it_may_be_used() -> None:
    """Each command's help, and what the group is for."""
    assert "while the host runs" in run("--help").stdout
    for command in ("verify", "dump", "replay", "backup", "restore"):
        assert run(command, "--help").exit_code == 0


@pytest.mark.parametrize("command", [["verify"], ["replay"], ["backup", "TARGET"], ["restore", "TARGET"]])
def test_long_work_shows_how_far_it_is(directory: Path, tmp_path: Path, command: list[str]) -> None:
    """On a terminal, and there alone; when it is done the bar is gone, and standard output is what it always is."""
    name, *target = command
    line = [sys.executable, "-m", "fpstated", "journal", name, str(directory)]
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    watched = [*line, *(str(tmp_path / "watched") for _ in target)]
    with subprocess.Popen(watched, stdout=subprocess.PIPE, stderr=child, env=environment, text=True) as process:
        os.close(child)
        shown = b""
        with suppress(OSError):  # EIO: the other side has closed it
            while data := os.read(parent, 65536):
                shown += data
        os.close(parent)
        said = process.communicate()[0]
    assert process.returncode == 0
    assert b"replay" in shown
    assert b"13/13" in shown
    piped = [*line, *(str(tmp_path / "piped") for _ in target)]
    done = subprocess.run(piped, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (said.replace(str(tmp_path / "watched"), str(tmp_path / "piped")), "")
