"""A controller's metrics: each of them appears and moves, with what really happens to it."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fpstated.link.http import HttpListener, health_page, loopback_address
from fpstated.testing_host import async_host
from host_agent.state import HostConfig
from tests.test_controller_loop import told
from vmm_controller.config import ControllerConfig
from vmm_controller.controller import Controller
from vmm_controller.metrics import METRICS, ControllerMetrics
from vmm_controller.policy import Backoff, parse_policies

VCPU = "vms/a/vcpus/0"


def values(meter: ControllerMetrics) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its labels' values, in the order of the labels' names."""
    text = meter.page()[2].decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def until(meter: ControllerMetrics, *name: str) -> None:
    """Wait until a sample is not zero."""
    async with asyncio.timeout(60):
        while not values(meter).get(name):  # noqa: ASYNC110 -- a counter tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_every_metric_appears_and_moves(tmp_path: Path) -> None:
    """An exit is decided, one is left, a decision is refused for want of scope, a host is not there, control goes."""
    prefix, meter = "fpstated_controller", ControllerMetrics()
    config = ControllerConfig(
        policies=parse_policies(["vms/a=retry", "vms/b=silent", "vms/c=retry"]),
        reconnect=Backoff(base_s=0.01, max_s=0.02),
        lease_s=3600,
    )
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/nobody") as channel:
        lost = Controller(channel, config, meter)
        running = asyncio.ensure_future(lost.run())
        await until(meter, f"{prefix}_disconnects_total", "UNAVAILABLE")
        lost.stop()
        await running
    async with async_host(HostConfig(faults=True)) as host, grpc.aio.insecure_channel(host.address) as channel:
        controller = Controller(channel, config, meter)
        running = asyncio.ensure_future(controller.run())
        await until(meter, f"{prefix}_watching")
        for vm in "abc":
            host.fail_allocation(vm=f"vms/{vm}")
        waits = [asyncio.ensure_future((await host.vcpu(f"vms/{vm}/vcpus/0")).xsetbv(0x602E7)) for vm in "ab"]
        await until(meter, f"{prefix}_left_total")
        await until(meter, f"{prefix}_results_total", "RESOLVED")
        of_vm = Controller(channel, ControllerConfig(name="c", scope="vms/c", policies=parse_policies(["silent"])))
        port = await host.vcpu("vms/c/vcpus/0")
        holding = asyncio.ensure_future(of_vm.run())
        await asyncio.wait_for(of_vm.watching.wait(), 60)
        waits.append(asyncio.ensure_future(port.xsetbv(0x602E7)))
        await until(meter, f"{prefix}_refusals_total", "CONTROL_OUT_OF_SCOPE")
        for each in (of_vm, controller):
            each.stop()
        await asyncio.gather(holding, running)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    shown = values(meter)
    assert shown[f"{prefix}_decisions_total", "RETRY"] >= 2
    assert shown[f"{prefix}_control_total", "released"] == 1
    assert shown[f"{prefix}_exit_changes_total", "NO_MEMORY", "OPEN"] >= 3
    assert shown[f"{prefix}_watching",] == 0
    names = {name[0] for name in shown}
    assert [spec.name for spec in METRICS if spec.name not in names] == []


@pytest.mark.asyncio
async def test_a_controllers_process_serves_them() -> None:
    """With health, where it was told to; who asks for something else is told what there is."""
    import sys

    async with async_host(HostConfig()) as host:
        command = (sys.executable, "-m", "fpstated", "controller", "--host", host.address, "--timeline")
        process = await asyncio.create_subprocess_exec(
            *command, "--metrics", "localhost:0", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        said = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        await told(process, event="watching")
        url = said.split()[-1]
        assert "fpstated_controller_watching 1.0" in await asyncio.to_thread(fetched, url)
        assert await asyncio.to_thread(fetched, url.replace("/metrics", "/healthz")) == "SERVING\n"
        process.terminate()
        await process.communicate()
        assert process.returncode == 0


def fetched(url: str) -> str:
    """A page's text."""
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 -- one that our own process has said
        text: str = answer.read().decode()
        return text


@pytest.mark.asyncio
@pytest.mark.parametrize(("serving", "status"), [(True, b"200"), (False, b"503")])
async def test_health_is_what_the_process_says(serving: bool, status: bytes) -> None:
    """Over plain HTTP, for probes that know nothing else."""
    async with HttpListener("127.0.0.1", 0, {"/healthz": health_page(lambda: serving)}) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await reader.read()).split()[1] == status
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("address", ["127.0.0.1:9465", "localhost:0", "[::1]:1"])
def test_an_address_of_loopback(address: str) -> None:
    """By number or by name."""
    assert loopback_address(address)[1] == int(address.rpartition(":")[2])


@pytest.mark.parametrize("address", ["0.0.0.0:1", "example.org:1", "unix:/x", "127.0.0.1", "127.0.0.1:70000"])
def test_any_other_is_refused(address: str) -> None:
    """Metrics are plaintext."""
    with pytest.raises(ValueError, match="expected"):
        loopback_address(address)
