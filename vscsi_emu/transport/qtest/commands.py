"""qtest commands, a line each, and their replies (QEMU's docs/devel/testing/qtest.rst).

QEMU aborts at malformed arguments; here they are answered FAIL, and the server goes on.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Final

from vscsi_emu.transport.qtest.address_space import ADDRESSES, AddressSpace

MAX_TRANSFER: Final = 16 << 20
"""Bytes that one command may move."""
MAX_LINE: Final = 2 * MAX_TRANSFER + 128
"""Bytes of the longest line: `write` of that many in hexadecimal."""

_SIZES: Final = {"b": 1, "w": 2, "l": 4, "q": 8}
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]{1,32}|[0-9]{1,32}")


class CommandError(ValueError):
    """A command that cannot be carried out; its text follows FAIL."""


class Commands:
    """The machine behind the protocol: little-endian, a clock with no timers, and one interrupt
    controller, whatever a client calls it."""

    def __init__(self, space: AddressSpace) -> None:
        self._space = space
        self._clock = 0
        self._controller: str | None = None
        self._handlers: dict[str, tuple[int, Callable[..., str]]] = {
            "read": (2, self._read),
            "write": (3, self._write),
            "b64read": (2, self._b64read),
            "b64write": (3, self._b64write),
            "memset": (3, self._memset),
            "endianness": (0, lambda *_: "little"),
            "clock_step": (0, self._clock_step),
            "clock_set": (1, self._clock_set),
            "irq_intercept_in": (1, self._intercept),
        }
        for suffix, size in _SIZES.items():
            self._handlers[f"read{suffix}"] = (1, self._loader(size))
            self._handlers[f"write{suffix}"] = (2, self._storer(size))

    @property
    def intercepting(self) -> bool:
        """Whether the client is told of interrupt lines."""
        return self._controller is not None

    def connected(self) -> None:
        """A new client: it has intercepted nothing yet."""
        self._controller = None

    def answer(self, line: str) -> str:
        """The reply to a command, without the line's end."""
        name, *arguments = line.split(" ")
        if name not in self._handlers:
            return f"FAIL Unknown command '{_printable(name)}'"
        needed, handler = self._handlers[name]
        if len(arguments) < needed:
            return f"FAIL {name} takes {needed} arguments, not {len(arguments)}"
        try:
            result = handler(*arguments)
        except CommandError as error:
            return f"FAIL {error}"
        return f"OK {result}" if result else "OK"

    # ── Memory and registers. QEMU ignores arguments too many, and so do we. ───────────────────

    def _loader(self, size: int) -> Callable[..., str]:
        def load(address: str, *_: str) -> str:
            data = self._space.read(_number(address), size)
            return f"{int.from_bytes(data, 'little'):#018x}"

        return load

    def _storer(self, size: int) -> Callable[..., str]:
        def store(address: str, value: str, *_: str) -> str:
            data = _number(value).to_bytes(8, "little")[:size]
            self._space.write(_number(address), data)
            return ""

        return store

    def _read(self, address: str, length: str, *_: str) -> str:
        count = _length(length)
        if not count:
            raise CommandError("read of 0 bytes has no answer")
        return f"0x{self._space.read(_number(address), count).hex()}"

    def _write(self, address: str, length: str, digits: str, *_: str) -> str:
        count = _length(length)
        if not digits.startswith("0x"):
            raise CommandError("data begin with 0x")
        try:
            data = bytes.fromhex(digits[2:])
        except ValueError:
            raise CommandError("data are hexadecimal digits, two a byte") from None
        # As in QEMU, missing data are zeros.
        self._space.write(_number(address), data[:count].ljust(count, b"\0"))
        return ""

    def _b64read(self, address: str, length: str, *_: str) -> str:
        data = self._space.read(_number(address), _length(length))
        return base64.b64encode(data).decode()

    def _b64write(self, address: str, length: str, encoded: str, *_: str) -> str:
        count = _length(length)
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise CommandError("data are not base64") from None
        if len(data) != count:
            raise CommandError(f"{count} bytes announced, {len(data)} given")
        self._space.write(_number(address), data)
        return ""

    def _memset(self, address: str, length: str, value: str, *_: str) -> str:
        self._space.write(_number(address), bytes([_number(value) & 0xFF]) * _length(length))
        return ""

    # ── Time and interrupts ─────────────────────────────────────────────────────────────────────

    def _clock_step(self, nanoseconds: str = "0", *_: str) -> str:
        self._clock += _number(nanoseconds)
        return str(self._clock)

    def _clock_set(self, nanoseconds: str, *_: str) -> str:
        self._clock = max(self._clock, _number(nanoseconds))
        return str(self._clock)

    def _intercept(self, path: str, *names: str) -> str:
        if names:
            raise CommandError("Interception of named in-GPIOs not yet supported")
        if self._controller not in (None, path):
            raise CommandError("IRQ intercept already enabled")
        self._controller = path
        return ""


def _number(text: str) -> int:
    """As strtoull reads it: 0x for hexadecimal, 0 for octal, else decimal."""
    if not _NUMBER.fullmatch(text):
        raise CommandError(f"'{_printable(text)}' is not a number")
    try:
        octal = text.isdigit() and text.startswith("0")
        value = int(text, 8 if octal else 0)
    except ValueError:
        raise CommandError(f"'{_printable(text)}' is not an octal number") from None
    if value >= ADDRESSES:
        raise CommandError(f"{_printable(text)} has more than 64 bits")
    return value


def _length(text: str) -> int:
    count = _number(text)
    if count > MAX_TRANSFER:
        raise CommandError(f"{count} bytes; a command moves at most {MAX_TRANSFER}")
    return count


def _printable(text: str) -> str:
    """What of a client's own words goes into a reply."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:40])
