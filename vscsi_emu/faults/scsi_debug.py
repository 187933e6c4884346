"""What scsi_debug takes (Linux, drivers/scsi/scsi_debug.c), as faults of ours.

Three tables: the bits of its parameter `opts`, its other parameters, and the types of lines of a
device's file ``/sys/kernel/debug/scsi_debug/H:C:T:L/error``; one more, of the host bytes in there.
The page docs/faults.md shows them.
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

# ── Parameters ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Opt:
    """A bit of `opts`; `fault` None: no fault, `note` says what it is."""

    bit: int
    name: str
    fault: Mapping[str, Any] | None
    counted: bool = True
    """`every_nth` applies."""
    note: str = ""
    rank: int = 1
    """Where several bits are set, what comes first there."""


def _fault(kind: str, **more: Any) -> Mapping[str, Any]:
    return MappingProxyType({"kind": kind, **more})


_LOGS: Final = "says more in the log; here: `trace`, `-v`"
_ABORTS: Final = "there with DID_ABORT besides, which a response with a status cannot say"
_MEDIA: Final = ("READ", "WRITE", "VERIFY", "WRITE SAME", "SYNCHRONIZE CACHE", "UNMAP")

OPTS: Final = (
    Opt(0x1, "NOISE", None, note=_LOGS),
    Opt(
        0x2,
        "MEDIUM_ERR",
        _fault("medium-error"),
        counted=False,
        note="there of READ only, and nothing is transferred",
    ),
    Opt(0x4, "TIMEOUT", _fault("hang"), rank=0),
    Opt(0x8, "RECOVERED_ERR", _fault("recovered-error"), note="there of READ and WRITE"),
    Opt(0x10, "TRANSPORT_ERR", _fault("transport-error"), rank=2),
    Opt(0x20, "DIF_ERR", _fault("dif-error"), note=_ABORTS),
    Opt(0x40, "DIX_ERR", _fault("dix-error"), note=_ABORTS),
    Opt(0x80, "MAC_TIMEOUT", _fault("hang", opcodes=list(_MEDIA)), rank=0),
    Opt(0x100, "SHORT_TRANSFER", _fault("short-transfer"), note="there of READ only"),
    Opt(0x200, "Q_NOISE", None, note=_LOGS),
    Opt(
        0x400,
        "ALL_TSF",
        None,
        note="ignored there; for TASK SET FULL at a queue depth: `queue-depth=` of the unit",
    ),
    Opt(
        0x800,
        "RARE_TSF",
        _fault("task-set-full"),
        note="there it counts those that find the queue full",
        rank=0,
    ),
    Opt(0x1000, "N_WCE", None, note="no write cache; here: `lun.set cache=writethrough`"),
    Opt(0x2000, "RESET_NOISE", None, note=_LOGS),
    Opt(0x4000, "NO_CDB_NOISE", None, note=_LOGS),
    Opt(
        0x8000,
        "HOST_BUSY",
        _fault("host-busy"),
        note="there the command does not leave the host, and is not counted as a try",
        rank=0,
    ),
    Opt(
        0x10000,
        "CMD_ABORT",
        _fault("command-abort"),
        note="there its time is over at once, so that Linux aborts it",
        rank=2,
    ),
    Opt(0x20000, "UNALIGNED_WRITE", _fault("unaligned-write"), rank=0),
)


def from_opts(
    opts: int,
    every_nth: int = 1,
    medium_error: tuple[int, int] = (MEDIUM_ERROR_START, MEDIUM_ERROR_COUNT),
) -> list[Fault]:
    """Faults for all set bits. `every_nth` negative: from that one on all. `medium_error`: its
    parameters `medium_error_start` and `medium_error_count`. `FaultError`."""
    known = sum(opt.bit for opt in OPTS)
    if opts < 0 or opts & ~known:
        raise FaultError("opts", f"{opts:#x} has bits that scsi_debug does not know")
    chosen = [opt for opt in OPTS if opts & opt.bit and opt.fault is not None]
    if every_nth == 0 and any(opt.counted for opt in chosen):
        raise FaultError("every_nth", "with 0, MEDIUM_ERR alone has an effect")
    counted: dict[str, Any] = {"nth": abs(every_nth), "every": max(every_nth, 1)}
    start, count = medium_error
    found = []
    for opt in sorted(chosen, key=lambda opt: opt.rank):
        fields = dict(opt.fault or {}) | (counted if opt.counted else {})
        if opt.name == "MEDIUM_ERR":
            if count < 1:
                raise FaultError("medium_error_count", f"{count} is less than 1")
            if start < 0:
                raise FaultError("medium_error_start", f"{start} is less than 0")
            fields |= {"lba": start, "blocks": count}
        found.append(Fault(**fields))
    return found


def from_delay(ndelay: int, *, random: bool = False) -> list[Fault]:
    """Its parameter `ndelay`, in ns (0: none); `random`: up to so long. `FaultError`."""
    if not 0 <= ndelay < _SECOND:
        raise FaultError("ndelay", f"{ndelay} is not within 0 to {_SECOND - 1}")
    if ndelay == 0:
        return []
    seconds = ndelay / _SECOND
    if random:
        return [Fault(kind="delay", distribution="uniform", seconds=0.0, spread=seconds)]
    return [Fault(kind="delay", seconds=seconds)]


_SECOND: Final = 1_000_000_000
FAIL_RESET: Final = Fault(kind="tmf-failure", function="I_T_NEXUS_RESET")
"""A target's file `fail_reset`."""

PARAMETERS: Final = {
    "`opts`": "the bits above",
    "`every_nth`": "`every`; negative: `nth`, and from then on all. It counts all commands of all "
    "its devices, the first effect waits for a command that it is for; here those of the unit "
    "that the fault is for are counted",
    "`medium_error_start`, `medium_error_count`": "the same, for MEDIUM_ERR; or `lba` and `blocks` "
    "of `medium-error`",
    "`ndelay`, `random`": "the same: `delay`, fixed or uniform from 0. INQUIRY, REPORT LUNS and "
    "REQUEST SENSE wait, too",
    "`delay`": "in jiffies of that kernel: give `ndelay`",
    "`tur_ms_to_ready`": "`answer` with `key` 2 and `code` 0x0401, for a `duration`",
    "`max_queue`, `host_max_queue`": "`queue-depth=` of the unit",
    "`wp`": "`ro` of the unit, or `lun.set read_only=on`",
    "`fail_reset` (debugfs, of a target)": "the same: `tmf-failure` of I_T_NEXUS_RESET. Linux's "
    "virtio_scsi sends none",
    "`fake_rw`, `per_host_store`": "no errors, but data: `null:`, a file for each",
    "`strict`": "no error injection: reserved bits of CDBs are always checked here",
    "`no_uld`, `lun_format`, `no_lun_0`, `statistics`, `max_luns`, `num_tgts`, `ptype`, "
    "`removable`, `zbc` and others": "no error injection: what devices there are, and what their "
    "driver does with them",
}
"""Name → what is the same here, or why there is nothing."""


# ── The file `error` ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class HostByte:
    """A DID_* of Linux (include/scsi/scsi_status.h)."""

    value: int
    name: str
    response: Response | None
    """The virtio response that its virtio_scsi reports so; None: none."""
    note: str = ""


_MIDLAYER: Final = "the midlayer's own"
_TRANSPORT: Final = "of transport classes that virtio-scsi is none of"

HOST_BYTES: Final = (
    HostByte(0x00, "DID_OK", Response.OK),
    HostByte(
        0x01,
        "DID_NO_CONNECT",
        Response.BAD_TARGET,
        "becomes DID_BAD_TARGET, which Linux treats alike",
    ),
    HostByte(0x02, "DID_BUS_BUSY", Response.BUSY),
    HostByte(0x03, "DID_TIME_OUT", None, "write a line of type 0"),
    HostByte(0x04, "DID_BAD_TARGET", Response.BAD_TARGET),
    HostByte(0x05, "DID_ABORT", Response.ABORTED),
    HostByte(0x06, "DID_PARITY", None, "of parallel SCSI"),
    HostByte(0x07, "DID_ERROR", Response.FAILURE),
    HostByte(0x08, "DID_RESET", Response.RESET),
    HostByte(0x09, "DID_BAD_INTR", None, "of an adapter's interrupts"),
    HostByte(0x0A, "DID_PASSTHROUGH", None, _MIDLAYER),
    HostByte(0x0B, "DID_SOFT_ERROR", None, "nothing that virtio_scsi reports"),
    HostByte(0x0C, "DID_IMM_RETRY", None, _MIDLAYER),
    HostByte(0x0D, "DID_REQUEUE", None, _MIDLAYER),
    HostByte(0x0E, "DID_TRANSPORT_DISRUPTED", Response.TRANSPORT_FAILURE),
    HostByte(0x0F, "DID_TRANSPORT_FAILFAST", None, _TRANSPORT),
    HostByte(
        0x10,
        "DID_TARGET_FAILURE",
        Response.TARGET_FAILURE,
        "since Linux 6.1 virtio_scsi makes DID_BAD_TARGET of it",
    ),
    HostByte(
        0x11,
        "DID_NEXUS_FAILURE",
        Response.NEXUS_FAILURE,
        "since Linux 6.1 virtio_scsi makes RESERVATION CONFLICT of it",
    ),
    HostByte(0x12, "DID_ALLOC_FAILURE", None, _MIDLAYER),
    HostByte(0x13, "DID_MEDIUM_ERROR", None, _MIDLAYER),
    HostByte(0x14, "DID_TRANSPORT_MARGINAL", None, _TRANSPORT),
)
_HOST_BYTES: Final = {each.value: each for each in HOST_BYTES}


@dataclass(frozen=True, slots=True)
class ErrorType:
    """The first column of a line, and what the columns behind count and opcode make of it."""

    number: int
    name: str
    columns: tuple[str, ...]
    fault: Callable[[Sequence[int]], Mapping[str, Any] | None]
    """None: no effect."""
    shown: str
    """The fault, for people."""
    opcode: bool = True


_SUCCESS: Final = 0
_DEVICE_BUSY: Final = 0x1056
_TARGET_BUSY: Final = 0x1058
"""SCSI_MLQUEUE_*; the midlayer takes every other value for SCSI_MLQUEUE_HOST_BUSY."""


def _queue_failure(values: Sequence[int]) -> Mapping[str, Any] | None:
    if values[0] == _SUCCESS:
        return None
    return {"kind": "busy" if values[0] in (_DEVICE_BUSY, _TARGET_BUSY) else "host-busy"}


def _command_failure(values: Sequence[int]) -> Mapping[str, Any]:
    host, driver, status, key, asc, ascq = values
    known = _HOST_BYTES.get(host)
    if known is None:
        raise FaultError("error", f"Linux has no host byte {host:#x}")
    if known.response is None:
        raise FaultError(
            "error",
            f"no virtio response means host byte {host:#x}, {known.name}: {known.note}",
        )
    if driver:
        raise FaultError(
            "error", "a driver byte is the initiator's, nothing that a device could cause; write 0"
        )
    answer = {"kind": "answer", "response": known.response, "status": status}
    checked = status == Status.CHECK_CONDITION
    return {**answer, "key": key, "code": asc << 8 | ascq} if checked else answer


ERRORS: Final = (
    ErrorType(0, "timeout", (), lambda _: {"kind": "hang"}, "`hang`"),
    ErrorType(
        1,
        "fail queuecommand",
        ("value",),
        _queue_failure,
        "`busy` for 0x1056 and 0x1058 (SCSI_MLQUEUE_DEVICE_BUSY, _TARGET_BUSY), none for 0, else "
        "`host-busy`",
    ),
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
_TYPES: Final = {error.number: error for error in ERRORS}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file: a rule, which replaces the one of its type and opcode, or the end of
    that one."""

    type: int
    opcode: int
    fault: Fault | None
    """None: from now on there is none."""
    ends: bool = False
    """It is an error if there is none already."""

    @property
    def key(self) -> tuple[int, int]:
        """Of the rule."""
        return self.type, self.opcode


def from_error(text: str) -> Line:
    """A line ``TYPE COUNT OPCODE …``: a COUNT of 0 is no fault, a positive one always, a negative
    one so many times; OPCODE ff: all. Or ``- TYPE OPCODE``. Opcodes and what is behind are
    hexadecimal, with or without 0x. `FaultError`."""
    words = text.split()
    if words[:1] == ["-"]:
        try:
            kind, command = words[1:]
            return Line(_TYPES[int(kind)].number, int(command, 16), None, ends=True)
        except (ValueError, KeyError):
            raise FaultError("error", f"{text!r} is no - TYPE OPCODE, TYPE 0 to 4") from None
    try:
        number, count, *rest = words
        error = _TYPES[int(number)]
        times, (opcode, *values) = int(count), [int(word, 16) for word in rest]
    except (ValueError, KeyError):
        raise FaultError("error", f"{text!r} is no TYPE COUNT OPCODE…, TYPE 0 to 4") from None
    if len(values) != len(error.columns):
        raise FaultError("error", f"{error.name} takes {', '.join(error.columns) or 'no more'}")
    if not error.opcode and opcode != _ALL_OPCODES:
        raise FaultError("error", "a reset is for no one command; write ff")
    wanted = error.fault(values)
    if times == 0 or wanted is None:
        return Line(error.number, opcode, None)
    commands: dict[str, Any] = {}
    if error.opcode:
        commands = {"opcodes": [] if opcode == _ALL_OPCODES else [opcode]}
    fault = Fault(**wanted, **commands, times=-times if times < 0 else None)
    return Line(error.number, opcode, fault)
