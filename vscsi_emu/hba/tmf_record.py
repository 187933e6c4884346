"""A task management function, from the control queue to the journal."""

from __future__ import annotations

import time
from enum import IntEnum
from typing import TYPE_CHECKING

from vscsi_emu.journal import TmfRecord
from vscsi_emu.virtio.scsi import (
    ControlType,
    Response,
    TmfRequest,
    TmfType,
    control_type,
    decode_lun,
    show_address,
)

if TYPE_CHECKING:
    from vscsi_emu.virtio.config import ByteOrder


def tmf_record(
    hba: str, order: ByteOrder, request: bytes, reply: bytes, seconds: float
) -> TmfRecord | None:
    """What to remember of a control request; None if it was no task management function."""
    try:
        if control_type(request, order) != ControlType.TMF:
            return None
        tmf = TmfRequest.unpack(request, order)
    except ValueError:
        return None
    address = decode_lun(tmf.lun)
    return TmfRecord(
        hba=hba,
        lun=show_address(address) if address else tmf.lun.hex(),
        function=_name(TmfType, tmf.subtype),
        tag=tmf.id if tmf.subtype in (TmfType.ABORT_TASK, TmfType.QUERY_TASK) else None,
        response=_name(Response, reply[0]) if reply else "no room for a response",
        seconds=seconds,
        time=time.time(),
    )


def _name(names: type[IntEnum], value: int) -> str:
    try:
        return names(value).name
    except ValueError:
        return str(value)
