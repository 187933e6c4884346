"""A disk whose bytes a Python class keeps: compressed, in memory.

vscsi-emu serve --socket-path hba.sock --lun python:examples/python_backend.py:Compressed
"""

import zlib

from vscsi_emu import Storage


class Compressed(Storage):
    size, block_size = 256 << 20, 4096

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(self.block(at) for at in range(offset, offset + length, 4096))

    def write(self, offset: int, data: bytes) -> None:
        for at in range(0, len(data), 4096):
            self.blocks[offset + at] = zlib.compress(data[at : at + 4096])

    def discard(self, offset: int, length: int) -> None:
        for at in range(offset, offset + length, 4096):
            self.blocks.pop(at, None)

    def block(self, at: int) -> bytes:
        return zlib.decompress(self.blocks[at]) if at in self.blocks else bytes(4096)
