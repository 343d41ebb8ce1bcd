"""Every subcommand and all that it says: the transcripts beside this file, played against a fresh host."""

from __future__ import annotations

from pathlib import Path

import pytest

from fpstated.ctl.app import ctl
from tests.ctl.rig import ctl_host
from tests.ctl.transcript import played
from tools.ctl_table import commands

HERE = Path(__file__).parent
TRANSCRIPTS = sorted(HERE.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_what_the_commands_say(path: Path, tmp_path: Path) -> None:
    """Tables, JSON, refusals with their hints, statuses. `python -m tests.ctl.transcript FILE` writes it anew."""
    with ctl_host(tmp_path) as host:
        assert played(path.read_text(), host) == path.read_text()


def test_every_command_is_in_a_transcript() -> None:
    """But those that need a terminal or a second host, which have tests of their own."""
    text = "".join(path.read_text() for path in TRANSCRIPTS)
    missing = {name for name, _, _ in commands(ctl) if f"\n$ {name}" not in text}
    assert missing == {"watch", "export", "import"}
