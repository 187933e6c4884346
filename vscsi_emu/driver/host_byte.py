"""What a virtio-scsi answer means to a SCSI midlayer (drivers/scsi/virtio_scsi.c)."""

from enum import IntEnum
from typing import Final

from vscsi_emu.virtio.scsi import Response


class HostByte(IntEnum):
    """DID_* of linux/scsi_status.h, as far as virtio_scsi sets them."""

    OK = 0x00
    BUS_BUSY = 0x02
    BAD_TARGET = 0x04
    ABORT = 0x05
    ERROR = 0x07
    RESET = 0x08
    TRANSPORT_DISRUPTED = 0x0E
    TARGET_FAILURE = 0x10
    NEXUS_FAILURE = 0x11


_HOST_BYTES: Final = {
    Response.OK: HostByte.OK,
    Response.OVERRUN: HostByte.ERROR,
    Response.ABORTED: HostByte.ABORT,
    Response.BAD_TARGET: HostByte.BAD_TARGET,
    Response.RESET: HostByte.RESET,
    Response.BUSY: HostByte.BUS_BUSY,
    Response.TRANSPORT_FAILURE: HostByte.TRANSPORT_DISRUPTED,
    Response.TARGET_FAILURE: HostByte.TARGET_FAILURE,
    Response.NEXUS_FAILURE: HostByte.NEXUS_FAILURE,
}


def host_byte(response: int) -> HostByte:
    """The host byte of a response code; FAILURE and unknown codes are DID_ERROR.

    Newer kernels dropped DID_TARGET_FAILURE and DID_NEXUS_FAILURE; a distinction is kept here.
    """
    try:
        return _HOST_BYTES.get(Response(response), HostByte.ERROR)
    except ValueError:
        return HostByte.ERROR


def split_residual(residual: int, data_out: int, data_in: int) -> tuple[int, int]:
    """(data-out, data-in) bytes not transferred, of buffers that long.

    `residual` counts both ways together and data-out as done first (5.6.6.1.1), so it is data-in's
    up to the whole of data-in. A device's nonsense is bounded by the buffers.
    """
    left_in = min(residual, data_in)
    return min(residual - left_in, data_out), left_in
