"""Commands out of a pcapng file that `CaptureWriter` wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from vscsi_emu.capture import iscsi, pcapng
from vscsi_emu.capture.writer import APPLICATION, TARGETS
from vscsi_emu.control.trace import TracedCommand
from vscsi_emu.virtio.scsi import SINGLE_LEVEL, WELL_KNOWN

_COMMENT: Final = re.compile(r"tag (0x[0-9a-f]+), queue (\d+)")


class CaptureError(Exception):
    """A file that is no trace of ours; one line for the user."""


@dataclass
class _Pending:
    packet: pcapng.Packet
    command: iscsi.Command
    target: int
    data: bytearray = field(default_factory=bytearray)


def read(path: str | Path) -> list[TracedCommand]:
    """The commands of a file, in order of their beginning. `CaptureError`, `OSError`."""
    try:
        with open(path, "rb") as file:
            commands = list(_commands(file))
    except ValueError as error:
        raise CaptureError(f"{path}: {error}; give a file of vscsi-emu trace -w") from None
    return sorted(commands, key=lambda command: command.time - command.nanoseconds)


def _commands(file: BinaryIO) -> Iterator[TracedCommand]:
    names: list[str] = []
    pending: dict[tuple[bytes, int], _Pending] = {}
    for block in pcapng.blocks(file):
        if block.type == pcapng.SECTION:
            program = block.options.get(pcapng.OPT_USERAPPL, b"")
            if not program.startswith(APPLICATION.encode()):
                raise ValueError("another program wrote it")
        elif block.type == pcapng.INTERFACE:
            names.append(block.options.get(pcapng.OPT_NAME, b"?").decode("utf-8", "replace"))
        elif block.type == pcapng.PACKET:
            packet = pcapng.parse_packet(block)
            if packet.interface >= len(names):
                raise ValueError(f"a packet of interface {packet.interface}, which is not there")
            ended = _packet(packet, pending)
            if ended is not None:
                yield _traced(names[packet.interface], packet, *ended)


def _packet(
    packet: pcapng.Packet, pending: dict[tuple[bytes, int], _Pending]
) -> tuple[_Pending, iscsi.Response] | None:
    """A command that this packet ends, with its response."""
    ends = iscsi.addresses(packet.data)
    target = next((end for end in ends if end.startswith(TARGETS)), None)
    pdu = iscsi.unpack(packet.data[iscsi.HEADERS :])
    if target is None or pdu is None:
        raise ValueError("a packet that is no iSCSI of ours")
    key = (target, pdu.itt)
    if isinstance(pdu, iscsi.Command):
        pending[key] = _Pending(packet, pdu, target[3])
    elif key not in pending:
        raise ValueError(f"a packet of command {pdu.itt}, which did not begin")
    elif isinstance(pdu, iscsi.Data):
        pending[key].data += pdu.data
    else:
        return pending.pop(key), pdu
    return None


def _traced(
    hba: str, packet: pcapng.Packet, begun: _Pending, response: iscsi.Response
) -> TracedCommand:
    command = begun.command
    found = _COMMENT.match(begun.packet.comment)
    lun = bytes([SINGLE_LEVEL, begun.target]) + command.lun[:6]
    moved = max(command.length - response.residual, 0)
    return TracedCommand(
        time=packet.time,
        nanoseconds=max(packet.time - begun.packet.time, 0),
        hba=hba,
        queue=int(found[2]) if found else 0,
        lun=(command.lun if command.lun[0] == WELL_KNOWN else lun).hex(),
        tag=int(found[1], 16) if found else 0,
        task_attribute=command.attribute,
        cdb=command.cdb.hex(),
        data_out_length=command.length if command.write else 0,
        data_in_length=command.length if command.read else 0,
        data_out_moved=moved if command.write else 0,
        data_in_moved=moved if command.read else 0,
        status=response.status,
        response=response.response,
        sense=response.sense.hex(),
        data=begun.data.hex(),
    )
