"""A client of QEMU's qtest protocol: guest memory, registers and interrupt lines by text lines.

Speaks to QEMU (``-qtest unix:PATH``) and to ``vscsi-emu qtest`` alike.
"""

import base64
import os
import time
from socket import AF_UNIX, SOCK_STREAM, socket
from types import TracebackType
from typing import Final, Literal, Self

CHUNK: Final = 64 << 10
"""Bytes of memory a command moves at most: QEMU scans a line again for each KiB of it."""
_RECEIVE: Final = 64 << 10
_SUFFIX: Final = {1: "b", 2: "w", 4: "l", 8: "q"}


class QtestError(RuntimeError):
    """The server refused a command, or said something that the protocol does not have."""


class QtestClient:
    """One connection. `timeout` (seconds) bounds every wait for the server.

    After an error of the connection itself (`TimeoutError`, `EOFError`) it cannot be used again.
    """

    def __init__(self, connection: socket, *, timeout: float = 10.0) -> None:
        self._timeout = timeout
        self._socket = connection
        self._input = bytearray()
        self._lines: dict[int, bool] = {}

    @classmethod
    def connect(cls, path: str | os.PathLike[str], *, timeout: float = 10.0) -> Self:
        """To a server that listens."""
        connection = socket(AF_UNIX, SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
        except OSError:
            connection.close()
            raise
        return cls(connection, timeout=timeout)

    @classmethod
    def accept(cls, listener: socket, *, timeout: float = 10.0) -> Self:
        """From a server that connects, as QEMU does by default. `listener` stays the caller's."""
        listener.settimeout(timeout)
        connection, _ = listener.accept()
        return cls(connection, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    # ── Lines ───────────────────────────────────────────────────────────────────────────────────

    def command(self, line: str) -> str:
        """Sends a command; what follows its OK. `QtestError` for any other answer."""
        deadline = time.monotonic() + self._timeout
        self._socket.settimeout(self._timeout)
        self._socket.sendall(line.encode() + b"\n")
        while (reply := self._next(deadline)) is None:
            pass
        verdict, _, rest = reply.partition(" ")
        if verdict != "OK":
            raise QtestError(f"{line[:80]!r} was answered {reply[:80]!r}")
        return rest

    def _next(self, deadline: float) -> str | None:
        """The next line; None for one that told of an interrupt line."""
        while b"\n" not in self._input:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.0))
            try:
                data = self._socket.recv(_RECEIVE)
            except (TimeoutError, BlockingIOError):
                raise TimeoutError("no line from the qtest server in time") from None
            if not data:
                raise EOFError("the qtest server closed the connection")
            self._input += data
        raw, _, self._input = self._input.partition(b"\n")
        line = raw.decode("ascii", "replace").strip()
        if not line.startswith("IRQ "):
            return line
        match line.split():
            case [_, "raise" | "lower" as change, number] if number.isdigit():
                self._lines[int(number)] = change == "raise"
                return None
        raise QtestError(f"the qtest server said {line[:80]!r}")

    # ── Guest memory and registers ──────────────────────────────────────────────────────────────

    def load(self, address: int, size: int) -> int:
        """readb, readw, readl, readq: `size` bytes in the guest's byte order."""
        return int(self.command(f"read{_SUFFIX[size]} {address:#x}"), 16)

    def store(self, address: int, size: int, value: int) -> None:
        """writeb, writew, writel, writeq."""
        self.command(f"write{_SUFFIX[size]} {address:#x} {value:#x}")

    def read(self, address: int, length: int) -> bytes:
        """Bytes in hexadecimal, which every server has. `length` is not 0."""
        return bytes.fromhex(self.command(f"read {address:#x} {length:#x}").removeprefix("0x"))

    def write(self, address: int, data: bytes) -> None:
        self.command(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def b64read(self, address: int, length: int) -> bytes:
        return base64.b64decode(self.command(f"b64read {address:#x} {length:#x}"), validate=True)

    def b64write(self, address: int, data: bytes) -> None:
        encoded = base64.b64encode(data).decode()
        self.command(f"b64write {address:#x} {len(data):#x} {encoded}")

    def memset(self, address: int, length: int, value: int) -> None:
        self.command(f"memset {address:#x} {length:#x} {value:#x}")

    def endianness(self) -> Literal["little", "big"]:
        match self.command("endianness"):
            case "little":
                return "little"
            case "big":
                return "big"
            case other:
                raise QtestError(f"endianness {other!r} is neither little nor big")

    # ── Time and interrupts ─────────────────────────────────────────────────────────────────────

    def clock_step(self, nanoseconds: int | None = None) -> int:
        """Advances the virtual clock, by default to its next timer; its time in nanoseconds."""
        step = "" if nanoseconds is None else f" {nanoseconds}"
        return int(self.command(f"clock_step{step}"))

    def irq_intercept_in(self, path: str) -> None:
        """Has the input lines of an interrupt controller reported to this client."""
        self.command(f"irq_intercept_in {path}")

    def wait_irq(self, number: int, timeout: float) -> bool:
        """Whether an intercepted line is raised, now or within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not self._lines.get(number, False):
            try:
                line = self._next(deadline)
            except TimeoutError:
                return False
            if line is not None:
                raise QtestError(f"the qtest server said {line[:80]!r} without being asked")
        return True


class QtestMemory:
    """`DmaMemory` over a connection. Each command is answered before the next is sent, which
    orders all accesses."""

    def __init__(self, client: QtestClient) -> None:
        self._client = client
        self._little = client.endianness() == "little"

    def read(self, address: int, length: int, /) -> bytes:
        return b"".join(
            self._client.b64read(address + at, min(CHUNK, length - at))
            for at in range(0, length, CHUNK)
        )

    def write(self, address: int, data: bytes, /) -> None:
        for at in range(0, len(data), CHUNK):
            self._client.b64write(address + at, data[at : at + CHUNK])

    def load_u16_acquire(self, address: int, /) -> int:
        return self._swapped(self._client.load(address, 2))

    def store_u16_release(self, address: int, value: int, /) -> None:
        self._client.store(address, 2, self._swapped(value))

    def fence(self) -> None:
        """Nothing to do, see the class."""

    def _swapped(self, value: int) -> int:
        return value if self._little else int.from_bytes(value.to_bytes(2, "little"), "big")


class QtestRegisters:
    """`driver.mmio.RegisterBus` over a connection. `irq`: the device's line, intercepted."""

    def __init__(self, client: QtestClient, irq: int) -> None:
        self._client = client
        self._irq = irq
        self._memory = QtestMemory(client)

    @property
    def memory(self) -> QtestMemory:
        return self._memory

    def read(self, address: int, size: int) -> int:
        return self._client.load(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        self._client.store(address, size, value)

    def wait_interrupt(self, timeout: float) -> bool:
        return self._client.wait_irq(self._irq, timeout)
