"""Traced commands into a pcapng file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import BinaryIO, Final

from vscsi_emu.capture import iscsi, pcapng
from vscsi_emu.control.decode import cdb_length
from vscsi_emu.control.statistics import response_name
from vscsi_emu.control.trace import TracedCommand
from vscsi_emu.virtio.scsi import SINGLE_LEVEL

APPLICATION: Final = "vscsi-emu"
"""How the name of the program begins in files of ours."""
INITIATORS: Final = bytes([10, 0, 0])
TARGETS: Final = bytes([10, 1])
"""IPv4 addresses are 10.0.0.(HBA + 1) and 10.1.HBA.TARGET, with the HBA's number in the file."""


@dataclass
class _Connection:
    stream: iscsi.Stream
    itt: int = 0
    stat: int = 0


class CaptureWriter:
    """A file in the making. Each HBA is an interface; each of its targets a TCP connection."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hbas: dict[str, int] = {}
        self._connections: dict[tuple[int, int], _Connection] = {}
        file.write(pcapng.section(f"{APPLICATION} {version('vscsi-emu')}"))

    def write(self, commands: Iterable[TracedCommand]) -> None:
        """Adds them; packets of one call are in order of time."""
        packets = [packet for command in commands for packet in self._packets(command)]
        packets.sort(key=lambda entry: entry[0])
        for time, connection, hba, pdu, comment in packets:
            incoming = isinstance(pdu, iscsi.Response) or (
                isinstance(pdu, iscsi.Data) and pdu.incoming
            )
            data = connection.stream.segment(iscsi.pack(pdu), incoming=incoming)
            self._file.write(pcapng.packet(pcapng.Packet(hba, time, data, comment)))

    def _hba(self, name: str) -> int:
        if name not in self._hbas:
            self._hbas[name] = len(self._hbas)
            self._file.write(pcapng.interface(name))
        return self._hbas[name]

    def _connection(self, hba: int, target: int) -> _Connection:
        ends = INITIATORS + bytes([hba % 255 + 1]), TARGETS + bytes([hba % 256, target])
        return self._connections.setdefault((hba, target), _Connection(iscsi.Stream(*ends)))

    def _packets(
        self, command: TracedCommand
    ) -> Iterator[tuple[int, _Connection, int, iscsi.Pdu, str]]:
        hba = self._hba(command.hba)
        field = bytes.fromhex(command.lun)
        single = field[0] == SINGLE_LEVEL
        connection = self._connection(hba, field[1] if single else 0)
        connection.itt = itt = connection.itt + 1
        cdb = bytes.fromhex(command.cdb)
        length = command.data_out_length + command.data_in_length
        start = command.time - command.nanoseconds
        lun = field[2:] + bytes(2) if single else field
        pdu = iscsi.Command(
            itt,
            lun,
            command.task_attribute,
            cdb[: cdb_length(cdb)],
            command.data_in_length > 0,
            command.data_out_length > 0,
            length,
            itt,
            connection.stat + 1,
        )
        yield start, connection, hba, pdu, f"tag {command.tag:#x}, queue {command.queue}"
        incoming = command.data_in_moved > 0
        at = command.time if incoming else start
        for data in _data(itt, lun, bytes.fromhex(command.data), incoming):
            yield at, connection, hba, data, ""
        connection.stat += 1
        sense = bytes.fromhex(command.sense)
        moved = command.data_out_moved + command.data_in_moved
        response = iscsi.Response(
            itt, command.response, command.status, length - moved, sense, connection.stat
        )
        comment = f"virtio response {response_name(command.response)}" if command.response else ""
        yield command.time, connection, hba, response, comment


def _data(itt: int, lun: bytes, data: bytes, incoming: bool) -> Iterator[iscsi.Data]:
    for number, offset in enumerate(range(0, len(data), iscsi.MAX_DATA)):
        piece = data[offset : offset + iscsi.MAX_DATA]
        final = offset + len(piece) == len(data)
        yield iscsi.Data(itt, lun, incoming, offset, piece, final, number)
