"""A disk behind Linux's sg driver (include/scsi/sg.h). Run in a guest: questions come as the
argument's file, answers go to standard output."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pickle
import sys
import zlib
from base64 import b64decode, b64encode
from types import TracebackType
from typing import Final, Self

from tests.conformance.differential.cdbs.asking import Answer, Question, Reply, answers

_SG_IO: Final = 0x2285
_SG_DXFER_NONE, _SG_DXFER_TO_DEV, _SG_DXFER_FROM_DEV = -1, -2, -3
_TIMEOUT_MS: Final = 10_000
_SENSE: Final = 64


class _SgIoHdr(ctypes.Structure):
    """struct sg_io_hdr."""

    _fields_ = (
        ("interface_id", ctypes.c_int),
        ("dxfer_direction", ctypes.c_int),
        ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p),
        ("cmdp", ctypes.c_void_p),
        ("sbp", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("usr_ptr", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("msg_status", ctypes.c_ubyte),
        ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    )


class SgNode:
    """An open ``/dev/sgN``."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def send(self, cdb: bytes, data_out: bytes, room: int) -> Reply:
        command = ctypes.create_string_buffer(cdb, len(cdb))
        sense = ctypes.create_string_buffer(_SENSE)
        data = ctypes.create_string_buffer(data_out or bytes(room), len(data_out) or room or 1)
        header = _SgIoHdr(
            interface_id=ord("S"),
            dxfer_direction=_SG_DXFER_NONE,
            cmd_len=len(cdb),
            mx_sb_len=_SENSE,
            dxfer_len=len(data_out) or room,
            dxferp=ctypes.addressof(data),
            cmdp=ctypes.addressof(command),
            sbp=ctypes.addressof(sense),
            timeout=_TIMEOUT_MS,
        )
        if data_out:
            header.dxfer_direction = _SG_DXFER_TO_DEV
        elif room:
            header.dxfer_direction = _SG_DXFER_FROM_DEV
        fcntl.ioctl(self._fd, _SG_IO, header)
        return Reply(
            header.status,
            sense.raw[: header.sb_len_wr],
            header.resid,
            b"" if data_out else data.raw[: room - header.resid],
            f"host status {header.host_status}" if header.host_status else "",
        )


def pack(items: list[Question] | list[Answer]) -> str:
    """As one line of text."""
    return b64encode(zlib.compress(pickle.dumps(items))).decode()


def unpack_questions(line: str) -> list[Question]:
    items: list[Question] = pickle.loads(zlib.decompress(b64decode(line)))
    return items


def unpack_answers(line: str) -> list[Answer]:
    items: list[Answer] = pickle.loads(zlib.decompress(b64decode(line)))
    return items


def main() -> None:
    node, questions = sys.argv[1:]
    with SgNode(node) as disk, open(questions, encoding="ascii") as file:
        print(pack(list(answers(disk.send, unpack_questions(file.read())))))


if __name__ == "__main__":
    main()
