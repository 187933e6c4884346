"""Guest RAM in a bytearray that remembers what was done to it, in order."""

import struct


class RecordingRam:
    def __init__(self, size: int = 1 << 20) -> None:
        self._bytes = bytearray(size)
        self.log: list[tuple[str, int]] = []

    def read(self, address: int, length: int, /) -> bytes:
        self.log.append(("read", address))
        return self.peek(address, length)

    def write(self, address: int, data: bytes, /) -> None:
        self.log.append(("write", address))
        self.poke(address, data)

    def load_u16_acquire(self, address: int, /) -> int:
        self.log.append(("load", address))
        return self.peek16(address)

    def store_u16_release(self, address: int, value: int, /) -> None:
        self.log.append(("store", address))
        self.poke(address, struct.pack("<H", value))

    def fence(self) -> None:
        self.log.append(("fence", 0))

    def peek(self, address: int, length: int) -> bytes:
        assert 0 <= address <= len(self._bytes) - length
        return bytes(self._bytes[address : address + length])

    def peek16(self, address: int) -> int:
        value: int = struct.unpack("<H", self.peek(address, 2))[0]
        return value

    def poke(self, address: int, data: bytes) -> None:
        """What the device does, unrecorded."""
        assert 0 <= address <= len(self._bytes) - len(data)
        self._bytes[address : address + len(data)] = data
