"""A split virtqueue written by hand, in any byte order: what a test needs of a driver."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import Literal

from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.virtio.mmio_queue import QueueSetup

NEXT = 1
WRITE = 2
REQUEST = 51
"""Bytes of a request's header with the default CDB size (5.6.6.1)."""
RESPONSE = 108
PENDING = 0xEE
"""What a response's bytes are until the device writes them."""
SECONDS = 60.0


def request(tag: int, cdb: bytes, *, target: int = 0, order: Literal["<", ">"] = "<") -> bytes:
    lun = bytes([1, target, 0x40, 0, 0, 0, 0, 0])
    return struct.pack(order + "8sQBBB32s", lun, tag, 0, 0, 0, cdb)


@dataclass
class Ring:
    """A ring of `setup`, and buffers for one request per slot from `buffers` on."""

    memory: GuestMemory
    setup: QueueSetup
    buffers: int
    order: Literal["<", ">"] = "<"
    published: int = 0

    def put(self, cdb: bytes = bytes(6)) -> int:
        """Publishes a request without data; its number, from 0. TEST UNIT READY by default."""
        number = self.published
        slot = number % (self.setup.size // 2)
        self.memory.write(self._header(number), request(number, cdb, order=self.order))
        self.memory.write(self._response(number), bytes([PENDING]) * RESPONSE)
        head = 2 * slot
        self._descriptor(head, self._header(number), REQUEST, NEXT, head + 1)
        self._descriptor(head + 1, self._response(number), RESPONSE, WRITE, 0)
        self.publish(head)
        return number

    def publish(self, head: int) -> None:
        entry = self.setup.driver + 4 + 2 * (self.published % self.setup.size)
        self.memory.write(entry, struct.pack(self.order + "H", head))
        self.published += 1
        self.jump(self.published)

    def jump(self, index: int) -> None:
        """Sets the available index."""
        self.memory.fence()
        self.memory.write(self.setup.driver + 2, struct.pack(self.order + "H", index & 0xFFFF))

    @property
    def used(self) -> int:
        """The used index."""
        data = self.memory.read(self.setup.device + 2, 2)
        return int(struct.unpack(self.order + "H", data)[0])

    def wait(self, used: int) -> None:
        deadline = time.monotonic() + SECONDS
        while self.used != used:
            assert time.monotonic() < deadline, f"used index {self.used} instead of {used}"
            time.sleep(0.001)

    def response(self, number: int) -> int:
        """The virtio response of a request."""
        return self.memory.read(self._response(number) + 11, 1)[0]

    def _descriptor(self, index: int, address: int, length: int, flags: int, link: int) -> None:
        data = struct.pack(self.order + "QIHH", address, length, flags, link)
        self.memory.write(self.setup.desc + 16 * index, data)

    def _header(self, number: int) -> int:
        return self.buffers + 256 * (number % (self.setup.size // 2))

    def _response(self, number: int) -> int:
        return self._header(number) + 128
