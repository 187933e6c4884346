"""The qtest server and its client, at the two ends of a socket."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.transport.qtest.machine import BASE, Machine
from vscsi_emu._dataplane import Interrupt
from vscsi_emu.driver.qtest import CHUNK, QtestClient, QtestError, QtestMemory, QtestRegisters
from vscsi_emu.transport.qtest import QtestServer
from vscsi_emu.transport.qtest.commands import MAX_LINE

IRQ = 7


class Served:
    """A machine and a line, to be served to clients that run in a thread of their own."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.interrupt = Interrupt()
        self.server = QtestServer(self.machine.commands, {IRQ: self.interrupt})

    def to(self, client: Callable[[socket.socket], None]) -> None:
        """Runs `client` at the other end, until it closes its socket."""

        async def main() -> None:
            ours, theirs = socket.socketpair()
            with theirs:
                async with asyncio.timeout(20):
                    await asyncio.gather(
                        self.server.converse(ours), asyncio.to_thread(_closing, client, theirs)
                    )

        asyncio.run(main())


def _closing(client: Callable[[socket.socket], None], connection: socket.socket) -> None:
    try:
        client(connection)
    finally:
        connection.close()


def test_memory_and_registers_through_a_socket() -> None:
    served = Served()

    def client(connection: socket.socket) -> None:
        qtest = QtestClient(connection)
        for size in (1, 2, 4, 8):
            qtest.store(0x100, size, 0x1122334455667788 & (1 << 8 * size) - 1)
            assert qtest.load(0x100, size) == 0x1122334455667788 & (1 << 8 * size) - 1
        qtest.write(0x200, b"abc")
        assert qtest.read(0x200, 4) == b"abc\0"
        qtest.b64write(0x300, b"defg")
        assert qtest.b64read(0x300, 4) == b"defg"
        qtest.memset(0x300, 2, 0x5A)
        assert qtest.b64read(0x300, 4) == b"ZZfg"
        assert qtest.endianness() == "little"
        assert qtest.clock_step(5) == 5
        assert qtest.clock_step() == 5
        registers = QtestRegisters(qtest, IRQ)
        registers.write(BASE + 0x70, 4, 3)
        assert registers.read(BASE, 4) == 0x03020100

    served.to(client)
    assert served.machine.registers.log == [("write", 0x70, 4, 3), ("read", 0, 4, 0)]


def test_dma_memory() -> None:
    served = Served()
    data = bytes(i * 7 % 251 for i in range(3 * CHUNK // 2))

    def client(connection: socket.socket) -> None:
        memory = QtestMemory(QtestClient(connection))
        memory.write(0x1000, data)
        assert memory.read(0x1000, len(data)) == data
        assert memory.read(0x1000, 0) == b""
        memory.store_u16_release(0x40, 0x1234)
        memory.fence()
        assert memory.read(0x40, 2) == b"\x34\x12"
        assert memory.load_u16_acquire(0x40) == 0x1234

    served.to(client)


def test_interrupt_lines() -> None:
    served = Served()

    def client(connection: socket.socket) -> None:
        qtest = QtestClient(connection)
        assert not qtest.wait_irq(IRQ, 0.0)
        served.interrupt.config_changed()
        assert not qtest.wait_irq(IRQ, 0.05), "nothing was intercepted"
        qtest.irq_intercept_in("ioapic")
        assert qtest.wait_irq(IRQ, 5.0)
        served.interrupt.acknowledge(2)
        qtest.load(0, 1)
        assert not qtest.wait_irq(IRQ, 0.0), "it falls before the command's answer"
        # Raised while no command is under way.
        threading.Timer(0.05, served.interrupt.config_changed).start()
        assert qtest.wait_irq(IRQ, 5.0)
        assert not qtest.wait_irq(IRQ + 1, 0.0)

    served.to(client)


def test_refused_commands_leave_the_connection_usable() -> None:
    def client(connection: socket.socket) -> None:
        qtest = QtestClient(connection)
        with pytest.raises(QtestError, match="Unknown command 'rtas'"):
            qtest.command("rtas")
        assert qtest.load(0, 4) == 0

    Served().to(client)


def test_commands_sent_ahead_are_answered_in_order() -> None:
    def client(connection: socket.socket) -> None:
        connection.sendall(b"writeb 0 1\nreadb 0\r\nreadb 1\n")
        with connection.makefile("rb") as replies:
            assert [replies.readline() for _ in range(3)] == [
                b"OK\n",
                b"OK 0x0000000000000001\n",
                b"OK 0x0000000000000000\n",
            ]

    Served().to(client)


def test_a_line_without_end_closes_the_connection() -> None:
    def client(connection: socket.socket) -> None:
        connection.settimeout(15)
        answer = bytearray()
        try:
            connection.sendall(b"x" * (MAX_LINE + (1 << 20)))
            while data := connection.recv(4096):
                answer += data
        except ConnectionError:
            pass
        assert not answer or answer.startswith(b"FAIL a line has at most")

    served = Served()
    served.to(client)

    def next_client(connection: socket.socket) -> None:
        assert QtestClient(connection).clock_step(1) == 1

    served.to(next_client)


def test_bytes_that_are_no_text() -> None:
    def client(connection: socket.socket) -> None:
        connection.sendall(b"\xff\x00\x80 1\n")
        assert connection.recv(100) == b"FAIL Unknown command '???'\n"

    Served().to(client)


def test_the_machine_outlives_its_clients(tmp_path: Path) -> None:
    served = Served()
    path = tmp_path / "qtest.sock"

    def clients() -> None:
        with QtestClient.connect(path) as first:
            first.store(0x10, 4, 99)
            first.irq_intercept_in("a")
        with QtestClient.connect(path) as second:
            assert second.load(0x10, 4) == 99
            second.irq_intercept_in("b")

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            serving = asyncio.create_task(served.server.listen(listener))
            async with asyncio.timeout(20):
                await asyncio.to_thread(clients)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(main())


# ── The client, at a server that misbehaves ─────────────────────────────────────────────────────


def _client_of(answer: bytes) -> tuple[QtestClient, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.sendall(answer)
    return QtestClient(ours, timeout=0.2), theirs


def test_a_server_that_listens_to_nobody() -> None:
    client, other = _client_of(b"")
    began = time.monotonic()
    with client, other, pytest.raises(TimeoutError):
        client.load(0, 4)
    assert time.monotonic() - began < 5


def test_a_server_that_leaves() -> None:
    client, other = _client_of(b"OK 0x")
    other.close()
    with client, pytest.raises((EOFError, ConnectionError)):
        client.load(0, 4)


@pytest.mark.parametrize("line", [b"IRQ 5\n", b"IRQ raise x\n", b"IRQ wave 5\n", b"what\n"])
def test_a_server_that_talks_nonsense(line: bytes) -> None:
    client, other = _client_of(line)
    with client, other, pytest.raises(QtestError):
        client.endianness()


def test_a_server_of_unknown_endianness() -> None:
    client, other = _client_of(b"OK middle\n")
    with client, other, pytest.raises(QtestError, match="neither"):
        client.endianness()


def test_an_answer_that_nobody_asked_for() -> None:
    client, other = _client_of(b"OK\n")
    with client, other, pytest.raises(QtestError, match="without being asked"):
        client.wait_irq(1, 1.0)


def test_a_big_endian_guest() -> None:
    client, other = _client_of(b"OK big\nOK 0x0000000000003412\nOK\n")
    with client, other:
        memory = QtestMemory(client)
        assert memory.load_u16_acquire(0) == 0x1234
        memory.store_u16_release(0, 0x1234)
        assert b"writew 0x0 0x3412\n" in other.recv(1000)
