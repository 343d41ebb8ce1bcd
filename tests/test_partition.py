"""Live processes that are cut off from each other and stopped: some rounds, through whatever is allowed here."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from fault_lab.live.proxy import Proxy, Trouble

TIMEOUT_S = 20


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "way", [pytest.param((), id="namespaces where allowed"), pytest.param(("--proxies",), id="proxies")]
)
def test_rounds_of_trouble(way: tuple[str, ...]) -> None:
    """Nothing acknowledged is lost, nobody else harmed, each exit decided once. A process: it changes its namespace."""
    command = [sys.executable, "-m", "tests.partition", "--rounds", "3", "--seed", "122", *way]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("rounds: 3, acknowledged: ")
    assert "lost: 0, harmed: 0" in last


@pytest.mark.asyncio
async def test_a_cut_way_lets_nothing_through_and_loses_nothing(tmp_path: Path) -> None:
    """What is sent meanwhile comes when the way is open again; the other way is open all the time."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello ")
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async with (
        await asyncio.start_unix_server(echo, f"{tmp_path}/host"),
        Proxy(f"unix:{tmp_path}/proxy", f"unix:{tmp_path}/host") as proxy,
    ):
        proxy.there.set(Trouble(stalled=True))
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/proxy")
        writer.write(b"now")
        assert await asyncio.wait_for(reader.readexactly(6), TIMEOUT_S) == b"hello "
        assert not reader._buffer  # type: ignore[attr-defined]
        proxy.heal()
        assert await asyncio.wait_for(reader.readexactly(3), TIMEOUT_S) == b"now"
        proxy.cut()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), TIMEOUT_S)
        writer.close()
