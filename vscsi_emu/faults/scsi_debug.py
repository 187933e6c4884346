"""What scsi_debug takes (Linux, drivers/scsi/scsi_debug.c), as faults of ours.

Two tables: the bits of its parameter `opts`, and the types of lines of a device's file
``/sys/kernel/debug/scsi_debug/H:C:T:L/error``. The page docs/faults.md shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from vscsi_emu.faults.vocabulary import Fault, FaultError
from vscsi_emu.scsi.status import Status
from vscsi_emu.virtio.scsi import Response

MEDIUM_ERROR_START: Final = 0x1234
"""Default of its parameter `medium_error_start`."""
MEDIUM_ERROR_COUNT: Final = 10
"""Default of its parameter `medium_error_count`."""


@dataclass(frozen=True, slots=True)
class Opt:
    """A bit of `opts`; `fault` None: no fault, `note` says what it is."""

    bit: int
    name: str
    fault: Mapping[str, Any] | None
    counted: bool = True
    """`every_nth` applies."""
    note: str = ""


def _fault(kind: str, **more: Any) -> Mapping[str, Any]:
    return MappingProxyType({"kind": kind, **more})


_LOGS: Final = "says more in the log; here: `trace`, `-v`"
_MEDIA: Final = ("READ", "WRITE", "VERIFY", "WRITE SAME", "SYNCHRONIZE CACHE", "UNMAP")

OPTS: Final = (
    Opt(0x1, "NOISE", None, note=_LOGS),
    Opt(
        0x2,
        "MEDIUM_ERR",
        _fault("medium-error", lba=MEDIUM_ERROR_START, blocks=MEDIUM_ERROR_COUNT),
        counted=False,
        note="`medium_error_start`, `medium_error_count`: `lba`, `blocks`",
    ),
    Opt(0x4, "TIMEOUT", _fault("hang")),
    Opt(0x8, "RECOVERED_ERR", _fault("recovered-error")),
    Opt(0x10, "TRANSPORT_ERR", _fault("transport-error")),
    Opt(0x20, "DIF_ERR", _fault("dif-error")),
    Opt(0x40, "DIX_ERR", _fault("dix-error")),
    Opt(0x80, "MAC_TIMEOUT", _fault("hang", opcodes=list(_MEDIA))),
    Opt(0x100, "SHORT_TRANSFER", _fault("short-transfer")),
    Opt(0x200, "Q_NOISE", None, note=_LOGS),
    Opt(
        0x400,
        "ALL_TSF",
        None,
        note="TASK SET FULL at the queue depth; here: `queue-depth=` of the unit",
    ),
    Opt(0x800, "RARE_TSF", _fault("task-set-full")),
    Opt(0x1000, "N_WCE", None, note="no write cache; here: `lun.set cache=writethrough`"),
    Opt(0x2000, "RESET_NOISE", None, note=_LOGS),
    Opt(0x4000, "NO_CDB_NOISE", None, note=_LOGS),
    Opt(0x8000, "HOST_BUSY", _fault("host-busy")),
    Opt(0x10000, "CMD_ABORT", _fault("command-abort")),
    Opt(0x20000, "UNALIGNED_WRITE", _fault("unaligned-write")),
)


def from_opts(opts: int, every_nth: int = 1) -> list[Fault]:
    """Faults for all set bits. `every_nth` negative: from that one on all. `FaultError`."""
    known = sum(opt.bit for opt in OPTS)
    if opts < 0 or opts & ~known:
        raise FaultError("opts", f"{opts:#x} has bits that scsi_debug does not know")
    if every_nth == 0:
        raise FaultError("every_nth", "0 injects nothing")
    counted: dict[str, Any] = {"nth": abs(every_nth), "every": max(every_nth, 1)}
    return [
        Fault(**opt.fault, **(counted if opt.counted else {}))
        for opt in OPTS
        if opts & opt.bit and opt.fault is not None
    ]


# ── The file `error` ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ErrorType:
    """The first column of a line, and what the columns behind count and opcode make of it."""

    number: int
    name: str
    columns: tuple[str, ...]
    fault: Callable[[Sequence[int]], Mapping[str, Any]]
    shown: str
    """The fault, for people."""
    opcode: bool = True


_HOST_BYTES: Final[Mapping[int, Response]] = MappingProxyType(
    {
        0x00: Response.OK,
        0x01: Response.BAD_TARGET,  # DID_NO_CONNECT
        0x02: Response.BUSY,
        0x04: Response.BAD_TARGET,
        0x05: Response.ABORTED,
        0x07: Response.FAILURE,  # DID_ERROR
        0x08: Response.RESET,
        0x0E: Response.TRANSPORT_FAILURE,  # DID_TRANSPORT_DISRUPTED
        0x10: Response.TARGET_FAILURE,
        0x11: Response.NEXUS_FAILURE,
    }
)
"""DID_* (include/scsi/scsi_status.h): the response that a Linux guest reports so."""
_DEVICE_BUSY: Final = 0x1056
"""SCSI_MLQUEUE_DEVICE_BUSY."""


def _queue_failure(values: Sequence[int]) -> Mapping[str, Any]:
    return {"kind": "busy" if values[0] == _DEVICE_BUSY else "host-busy"}


def _command_failure(values: Sequence[int]) -> Mapping[str, Any]:
    host, driver, status, key, asc, ascq = values
    if host not in _HOST_BYTES:
        raise FaultError("error", f"no virtio response means host byte {host:#x}")
    if driver:
        raise FaultError("error", "a driver byte is nothing that a device could cause; write 0")
    answer = {"kind": "answer", "response": _HOST_BYTES[host], "status": status}
    checked = status == Status.CHECK_CONDITION
    return {**answer, "key": key, "code": asc << 8 | ascq} if checked else answer


ERRORS: Final = (
    ErrorType(0, "timeout", (), lambda _: {"kind": "hang"}, "`hang`"),
    ErrorType(1, "fail queuecommand", ("value",), _queue_failure, "`host-busy`, `busy`"),
    ErrorType(
        2,
        "fail command",
        ("host byte", "driver byte", "status", "sense key", "ASC", "ASCQ"),
        _command_failure,
        "`answer`",
    ),
    ErrorType(
        3,
        "fail abort",
        (),
        lambda _: {"kind": "tmf-failure", "function": "ABORT_TASK"},
        "`tmf-failure` of ABORT_TASK",
        opcode=False,
    ),
    ErrorType(
        4,
        "fail LUN reset",
        (),
        lambda _: {"kind": "tmf-failure", "function": "LOGICAL_UNIT_RESET"},
        "`tmf-failure` of LOGICAL_UNIT_RESET",
        opcode=False,
    ),
)
_ALL_OPCODES: Final = 0xFF


def from_error(line: str) -> list[Fault]:
    """The fault of a line ``TYPE COUNT OPCODE …``: a COUNT of 0 is none, a positive one always, a
    negative one so many times; OPCODE ff: all. Opcodes and what is behind are hexadecimal, with
    or without 0x. `FaultError`."""
    try:
        number, count, *rest = line.split()
        kind = {error.number: error for error in ERRORS}[int(number)]
        times, (opcode, *values) = int(count), [int(word, 16) for word in rest]
    except (ValueError, KeyError):
        raise FaultError("error", f"{line!r} is no TYPE COUNT OPCODE…, TYPE 0 to 4") from None
    if len(values) != len(kind.columns):
        raise FaultError("error", f"{kind.name} takes {', '.join(kind.columns) or 'no more'}")
    if not kind.opcode and opcode != _ALL_OPCODES:
        raise FaultError("error", "task management names no opcode; write ff")
    if times == 0:
        return []
    wanted = dict(kind.fault(values))
    if opcode != _ALL_OPCODES:
        wanted["opcodes"] = [opcode]
    elif kind.opcode:
        wanted["opcodes"] = []
    return [Fault(**wanted, times=-times if times < 0 else None)]
