"""``vscsi-emu qtest`` as a process: our driver over the socket, and clients that misbehave."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance import cdb
from tests.conformance.cdb import pattern
from vscsi_emu.driver.disk import Disk
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.host import ScsiHost
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.qtest import QtestClient, QtestError, QtestRegisters
from vscsi_emu.driver.virtio_scsi import Options, VirtioScsi
from vscsi_emu.testing.hba import program
from vscsi_emu.virtio.mmio_registers import MAGIC

BASE, IRQ = 0x1000_0000, 5
START_SECONDS = 60.0
ARGUMENTS = ("--base", hex(BASE), "--irq", str(IRQ), "--memory", "32M", "--queues", "2")
LUNS = ("--lun", "0:0=mem:8M", "--lun", "2:9=mem:1M,ro")


@contextmanager
def served(path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(program()), "qtest", "--socket", str(path), *ARGUMENTS, *LUNS, *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def connect(path: Path) -> QtestClient:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return QtestClient.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline, f"nothing listens on {path}"
            time.sleep(0.02)


def drive(client: QtestClient, options: Options | None = None) -> None:
    """A guest's life: probe, scan, I/O, reset."""
    client.irq_intercept_in("gic")
    heap = DmaAllocator(1 << 20, 24 << 20)
    bus = VirtioMmioBus.find(QtestRegisters(client, IRQ), BASE, heap)
    assert bus is not None
    device = VirtioScsi(bus, options, timeout=60.0)
    host = ScsiHost(device)
    host.scan(range(4))
    assert sorted(host.disks) == [(0, 0), (2, 9)]
    data = pattern(300 * 512)
    host.disks[0, 0].write(11, data)
    assert Disk(device, 0, 0).read(11, 300) == data
    assert device.execute(2, 9, cdb.write_10(0, 1), data_out=bytes(512)).status == 2
    bus.reset()


@pytest.mark.normative("mmio.irq.r1", "mmio.irq.r3")
@pytest.mark.parametrize("legacy", [(), ("--legacy",)], ids=["modern", "legacy"])
def test_a_guest_in_another_process(tmp_path: Path, legacy: tuple[str, ...]) -> None:
    path = tmp_path / "q.sock"
    with served(path, *legacy) as process:
        for options in (Options(), Options(queues=2, indirect_from=None)):
            with connect(path) as client:
                drive(client, options)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not path.exists()
        assert process.stderr is not None
        assert f"registers at {BASE:#x}, interrupt line {IRQ}" in process.stderr.read()


def test_connecting_to_a_client_that_listens(tmp_path: Path) -> None:
    path = tmp_path / "q.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with served(path, "--connect") as process:
            with QtestClient.accept(listener, timeout=START_SECONDS) as client:
                drive(client)
            assert process.wait(60) == 0, "it ends with its client"
    assert path.exists(), "the socket is the client's"


def test_clients_that_misbehave_leave_the_machine_whole(tmp_path: Path) -> None:
    path = tmp_path / "q.sock"
    with served(path, "-q") as process:
        with connect(path) as client:
            for line in ("", "readl", "readl x", "read 0 0", "write 0 9 0", "b64write 0 1 ?", "\t"):
                with pytest.raises(QtestError):
                    client.command(line)
            assert client.load(BASE, 4) == MAGIC
            # Registers without a driver: nothing to be read from a ring, no interrupt.
            for offset in range(0, 0x200, 4):
                client.store(BASE + offset, 4, 0xFFFF_FFFF)
                client.load(BASE + offset, 4)
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(path))
            rude.sendall(b"readl 0x1000\n" * 1000)  # and goes without reading an answer
        with socket.socket(socket.AF_UNIX) as cut_off:
            cut_off.connect(str(path))
            cut_off.sendall(b"writel 0x1000")
        with connect(path) as client:
            drive(client)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_client_that_leaves_with_commands_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "q.sock"
    with served(path, "-q"):
        with connect(path) as client:
            client.irq_intercept_in("gic")
            heap = DmaAllocator(1 << 20, 24 << 20)
            bus = VirtioMmioBus.find(QtestRegisters(client, IRQ), BASE, heap)
            assert bus is not None
            device = VirtioScsi(bus)
            for _ in range(20):
                device.submit(0, 0, cdb.read_10(0, 8), data_in_length=4096)
        with connect(path) as client:
            drive(client)
