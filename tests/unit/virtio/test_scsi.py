"""Control and event structures, byte by byte."""

from __future__ import annotations

import struct

import pytest

from vscsi_emu.virtio.config import ByteOrder
from vscsi_emu.virtio.scsi import (
    AsyncReply,
    AsyncRequest,
    ControlType,
    Event,
    Response,
    TmfRequest,
    TmfType,
    control_type,
    decode_lun,
    encode_lun,
)

LUN = bytes(range(1, 9))
ORDERS: list[ByteOrder] = ["<", ">"]


@pytest.mark.normative("scsi.ctl.leg.d1", "scsi.evt.leg.d1")
@pytest.mark.parametrize("order", ORDERS)
def test_layouts(order: ByteOrder) -> None:
    tmf = TmfRequest(TmfType.QUERY_TASK, LUN, 0x1122334455667788)
    wire = struct.pack(order + "II", 0, 6) + LUN + struct.pack(order + "Q", tmf.id)
    assert (tmf.pack(order), len(wire)) == (wire, TmfRequest.SIZE)
    assert TmfRequest.unpack(wire, order) == tmf
    assert control_type(wire, order) == ControlType.TMF

    query = AsyncRequest(ControlType.AN_SUBSCRIBE, LUN, 0x10)
    wire = struct.pack(order + "I", 2) + LUN + struct.pack(order + "I", 0x10)
    assert (query.pack(order), len(wire)) == (wire, AsyncRequest.SIZE)
    assert AsyncRequest.unpack(wire, order) == query

    reply = AsyncReply(0x10, Response.FAILURE)
    wire = struct.pack(order + "IB", 0x10, 9)
    assert (reply.pack(order), len(wire)) == (wire, AsyncReply.SIZE)
    assert AsyncReply.unpack(wire, order) == reply

    event = Event(1, LUN, 2)
    wire = struct.pack(order + "I", 1) + LUN + struct.pack(order + "I", 2)
    assert (event.pack(order), len(wire)) == (wire, Event.SIZE)
    assert Event.unpack(wire, order) == event


@pytest.mark.parametrize("kind", [TmfRequest, AsyncRequest, AsyncReply, Event])
def test_cut_short(kind: type[TmfRequest | AsyncRequest | AsyncReply | Event]) -> None:
    for length in range(kind.SIZE):
        with pytest.raises(ValueError, match=f"{length} bytes where {kind.SIZE} are needed"):
            kind.unpack(bytes(length))
    with pytest.raises(ValueError, match="3 bytes where 4"):
        control_type(bytes(3))


@pytest.mark.normative("scsi.req.d21")
@pytest.mark.parametrize(
    ("field", "address"),
    [
        ("0100000000000000", (0, 0)),
        ("01ff00ff00000000", (255, 255)),
        ("0107400500000000", (7, 5)),
        ("01017fff00000000", (1, 16383)),
        ("0000000000000000", None),  # first byte is not 1
        ("0200000000000000", None),
        ("c101000000000000", None),  # well-known unit
        ("0100800100000000", None),  # logical unit addressing
        ("0100c10100000000", None),  # extended addressing
        ("0100010100000000", None),  # peripheral, but bus 1
        ("0100000000010000", None),  # a second level
    ],
)
def test_lun_field(field: str, address: tuple[int, int] | None) -> None:
    assert decode_lun(bytes.fromhex(field)) == address


@pytest.mark.parametrize(
    ("address", "field"),
    [
        ((0, 0), "0100000000000000"),
        ((255, 255), "01ff00ff00000000"),
        ((3, 256), "0103410000000000"),
        ((3, 16383), "01037fff00000000"),
    ],
)
def test_encoded_as_report_luns_does(address: tuple[int, int], field: str) -> None:
    assert encode_lun(*address).hex() == field
    assert decode_lun(encode_lun(*address)) == address


@pytest.mark.parametrize("address", [(256, 0), (-1, 0), (0, 16384), (0, -1)])
def test_addresses_out_of_range(address: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is not within"):
        encode_lun(*address)
