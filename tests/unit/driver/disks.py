"""Disks behind a device played in Python: the few commands that scanning and block I/O take."""

import struct
from dataclasses import dataclass, field

from tests.unit.driver.device import Chain, FakeBus
from vscsi_emu.driver.virtio_scsi import EVENT_QUEUE, REQUEST_QUEUE
from vscsi_emu.virtio.config import ScsiConfig
from vscsi_emu.virtio.scsi import Event, Response, decode_lun

SENSE_SIZE = 96
BLOCK = 512


@dataclass
class FakeDisks:
    """`disks`: contents by (target, LUN). `log`: (opcode, LBA, blocks) of media commands."""

    disks: dict[tuple[int, int], bytearray]
    config: ScsiConfig = field(default_factory=lambda: ScsiConfig(num_queues=2))
    log: list[tuple[int, int, int]] = field(default_factory=list)
    queues: list[int] = field(default_factory=list)
    attentions: int = 0
    """Media commands yet to be answered by a unit attention."""

    def __post_init__(self) -> None:
        self.bus = FakeBus(self._handle, config=self.config)

    def send(self, event: Event) -> None:
        """Uses the oldest event buffer."""
        chain = next(c for c in self.bus.kept if c.queue == EVENT_QUEUE)
        self.bus.kept.remove(chain)
        self.bus.use(chain, event.pack())

    def _handle(self, chain: Chain) -> bytes | None:
        if chain.queue < REQUEST_QUEUE:
            return None
        address = decode_lun(chain.request[:8])
        assert address is not None
        cdb, data = chain.request[19:51], chain.request[51:]
        room = sum(s.length for s in chain.writable) - 12 - SENSE_SIZE
        if not any(target == address[0] for target, _ in self.disks):
            return _answer(room=room, response=Response.BAD_TARGET)
        return self._command(chain, address, cdb, data, room)

    def _command(
        self, chain: Chain, address: tuple[int, int], cdb: bytes, data: bytes, room: int
    ) -> bytes:
        disk = self.disks.get(address)
        match cdb[0]:
            case 0xA0:
                luns = sorted(lun for target, lun in self.disks if target == address[0])
                body = b"".join(struct.pack(">H6x", 0x4000 | lun) for lun in luns)
                return _answer(struct.pack(">I4x", len(body)) + body, room)
            case 0x12:
                names = b"VENDOR".ljust(8) + b"DISK".ljust(16) + b"0001"
                return _answer((b"\0" if disk is not None else b"\x7f") + bytes(7) + names, room)
            case 0x9E if disk is not None:
                return _answer(struct.pack(">QI20x", len(disk) // BLOCK - 1, BLOCK), room)
            case 0x88 | 0x8A as opcode if disk is not None:
                lba, blocks = struct.unpack_from(">QI", cdb, 2)
                self.log.append((opcode, lba, blocks))
                self.queues.append(chain.queue)
                if self.attentions:
                    self.attentions -= 1
                    return _answer(room=room, status=2, sense=b"\x70\0\x06" + bytes(15))
                where = slice(lba * BLOCK, (lba + blocks) * BLOCK)
                if opcode == 0x88:
                    return _answer(bytes(disk[where]), room)
                disk[where] = data
                return _answer()
            case 0x91:
                return _answer()
        return _answer(room=room, status=2, sense=b"\x70\0\x05" + bytes(15))


def _answer(
    data: bytes = b"", room: int = 0, *, response: int = 0, status: int = 0, sense: bytes = b""
) -> bytes:
    data = data[:room]
    fixed = struct.pack("<IIHBB", len(sense), room - len(data), 0, status, response)
    return fixed + sense.ljust(SENSE_SIZE, b"\0") + data
