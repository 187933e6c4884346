"""Faults to order: the vocabulary. A `Fault` says what goes wrong with which commands of a unit.

Each kind is declared once, in `KINDS`; docs/faults.md and the monitor's schema come from that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from vscsi_emu._dataplane import MAX_WEAR_UNITS
from vscsi_emu.backends.uri import did_you_mean
from vscsi_emu.scsi.cdb import filter_of
from vscsi_emu.scsi.sense import SenseKey
from vscsi_emu.scsi.status import Status
from vscsi_emu.virtio.scsi import Response, TmfType

KindName = Literal[
    "answer",
    "medium-error",
    "write-error",
    "recovered-error",
    "hardware-error",
    "not-ready",
    "transport-error",
    "dif-error",
    "dix-error",
    "unaligned-write",
    "disk-full",
    "wear-out",
    "unit-attention",
    "reservation-conflict",
    "busy",
    "task-set-full",
    "host-busy",
    "command-abort",
    "delay",
    "hang",
    "lost-completion",
    "short-transfer",
    "bit-flip",
    "torn-write",
    "lost-write",
    "misdirected-write",
    "tmf-failure",
    "link-down",
]
Distribution = Literal["fixed", "uniform", "normal", "lognormal"]
Function = Literal[
    "ABORT_TASK",
    "ABORT_TASK_SET",
    "CLEAR_ACA",
    "CLEAR_TASK_SET",
    "I_T_NEXUS_RESET",
    "LOGICAL_UNIT_RESET",
    "QUERY_TASK",
    "QUERY_TASK_SET",
]

LONGEST: Final = 3600.0
"""Seconds that a command may be delayed by one fault."""
_MAX_NUMBER: Final = 1 << 63
_ERASE_UNIT: Final = 1 << 20
"""Bytes, by default."""


class FaultError(ValueError):
    """A fault that makes no sense; `parameter` names what is at fault."""

    def __init__(self, parameter: str, text: str) -> None:
        super().__init__(f"{parameter}: {text}")
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault. `rule`: keyword arguments of `_dataplane.FaultRule`."""

    doc: str
    rule: Mapping[str, Any]
    commands: tuple[str, ...] = ()
    """Families of commands that it is for by default; empty: all."""
    takes: tuple[str, ...] = ()
    """Fields of `Fault` that only some kinds have."""
    times: int | None = None
    """By default."""
    others: bool = True
    """Other commands can be named, too."""
    hosts: bool = True
    """Devices of the host (``sg:``) can have it, too."""
    linux: str = ""
    """What a Linux guest says of it."""


def _check(key: SenseKey, code: int, **more: bool) -> Mapping[str, Any]:
    answer = (Response.OK, Status.CHECK_CONDITION)
    return MappingProxyType({"answer": answer, "sense": (key, code), **more})


def _bad(key: SenseKey, code: int, *, reads: bool) -> Mapping[str, Any]:
    return MappingProxyType({"bad": (reads, key, code)})


def _corruption(how: str) -> Mapping[str, Any]:
    return MappingProxyType({"corruption": how})


def _status(status: Status, response: Response = Response.OK) -> Mapping[str, Any]:
    return MappingProxyType({"answer": (response, status)})


_READS: Final = ("READ",)
_WRITES: Final = (
    "WRITE",
    "WRITE AND VERIFY",
    "WRITE SAME",
    "WRITE ATOMIC",
    "COMPARE AND WRITE",
    "ORWRITE",
)
_CHECKED_READS: Final = (*_READS, "VERIFY", "WRITE AND VERIFY", "COMPARE AND WRITE", "ORWRITE")
_CHANGES: Final = (*_WRITES, "UNMAP")
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

KINDS: Final[Mapping[KindName, Kind]] = MappingProxyType(
    {
        "answer": Kind(
            "Ends with any `response`, `status` and sense (`key`, `code`) instead of being "
            "processed; with `executed`, after it.",
            _NOTHING,
            takes=("response", "status", "key", "code", "executed"),
        ),
        "medium-error": Kind(
            "MEDIUM ERROR, UNRECOVERED READ ERROR at the first bad block that is read, whose "
            "address is in INFORMATION; what comes before it is done.",
            _bad(SenseKey.MEDIUM_ERROR, 0x1100, reads=True),
            commands=_CHECKED_READS,
            linux="critical medium error",
        ),
        "write-error": Kind(
            "The same of blocks that are written: MEDIUM ERROR, WRITE ERROR.",
            _bad(SenseKey.MEDIUM_ERROR, 0x0C00, reads=False),
            commands=_WRITES,
            linux="I/O error",
        ),
        "recovered-error": Kind(
            "It succeeds, with RECOVERED ERROR, FAILURE PREDICTION THRESHOLD EXCEEDED.",
            _check(SenseKey.RECOVERED_ERROR, 0x5D00, executed=True),
            commands=(*_READS, *_WRITES),
            linux="Sense Key : 0x1",
        ),
        "hardware-error": Kind(
            "HARDWARE ERROR, INTERNAL TARGET FAILURE.",
            _check(SenseKey.HARDWARE_ERROR, 0x4400),
            commands=(*_READS, *_WRITES),
            linux="critical target error",
        ),
        "not-ready": Kind(
            "NOT READY, LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED.",
            _check(SenseKey.NOT_READY, 0x0403),
            commands=(*_READS, *_WRITES, "TEST UNIT READY"),
            linux="I/O error",
        ),
        "transport-error": Kind(
            "ABORTED COMMAND, ACK/NAK TIMEOUT, of a command that was processed well.",
            _check(SenseKey.ABORTED_COMMAND, 0x4B03, executed=True),
        ),
        "dif-error": Kind(
            "ABORTED COMMAND, LOGICAL BLOCK GUARD CHECK FAILED, after the transfer.",
            _check(SenseKey.ABORTED_COMMAND, 0x1001, executed=True),
            commands=(*_READS, *_WRITES),
            linux="protection error",
        ),
        "dix-error": Kind(
            "ILLEGAL REQUEST, LOGICAL BLOCK GUARD CHECK FAILED, after the transfer.",
            _check(SenseKey.ILLEGAL_REQUEST, 0x1001, executed=True),
            commands=(*_READS, *_WRITES),
            linux="protection error",
        ),
        "unaligned-write": Kind(
            "ILLEGAL REQUEST, UNALIGNED WRITE COMMAND.",
            _check(SenseKey.ILLEGAL_REQUEST, 0x2104),
            commands=_WRITES,
            linux="critical target error",
        ),
        "disk-full": Kind(
            "DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT.",
            _check(SenseKey.DATA_PROTECT, 0x2707),
            commands=_WRITES,
            linux="critical space allocation error",
        ),
        "wear-out": Kind(
            "Each erase unit of `unit` blocks, 1 MiB by default (or what makes no more than "
            f"{MAX_WEAR_UNITS} units), can be written `writes` times. The next write of it has a "
            "spare one take its place: RECOVERED ERROR, WRITE ERROR - RECOVERED WITH AUTO "
            "REALLOCATION. When none of the `spares`, 1 by default, is left: MEDIUM ERROR, WRITE "
            "ERROR - AUTO REALLOCATION FAILED, at the first worn block.",
            _NOTHING,
            commands=_WRITES,
            takes=("writes", "spares", "unit"),
            others=False,
            linux="I/O error",
        ),
        "unit-attention": Kind(
            "UNIT ATTENTION with `code`, POWER ON, RESET OR BUS DEVICE RESET OCCURRED by default; "
            "once by default.",
            _NOTHING,
            takes=("code",),
            times=1,
            linux="Power-on or device reset occurred",
        ),
        "reservation-conflict": Kind(
            "RESERVATION CONFLICT.",
            _status(Status.RESERVATION_CONFLICT),
            commands=(*_READS, *_WRITES),
            linux="reservation conflict",
        ),
        "busy": Kind("BUSY: the initiator tries again.", _status(Status.BUSY)),
        "task-set-full": Kind(
            "TASK SET FULL: the initiator lowers its queue depth.", _status(Status.TASK_SET_FULL)
        ),
        "host-busy": Kind(
            "The virtio response BUSY: the request did not get through.",
            _status(Status.GOOD, Response.BUSY),
        ),
        "command-abort": Kind(
            "The virtio response ABORTED, without anybody having asked.",
            _status(Status.GOOD, Response.ABORTED),
        ),
        "delay": Kind(
            "It is processed `seconds` later; as `distribution` says, with `spread`: `uniform` "
            "between `seconds` and `spread`, `normal` around `seconds` with the standard "
            "deviation `spread`, `lognormal` with the median `seconds` and the deviation `spread` "
            "of the logarithm.",
            _NOTHING,
            takes=("seconds", "distribution", "spread"),
        ),
        "hang": Kind(
            "It is not processed before it is released, by `fault.release` or `fault.remove`; an "
            "abort or a reset ends it.",
            MappingProxyType({"hang": True}),
        ),
        "lost-completion": Kind(
            "It is processed, but does not complete; an abort or a reset ends it.",
            MappingProxyType({"lose": True}),
        ),
        "short-transfer": Kind(
            "Only `part` of the data is transferred, half by default, in whole blocks; the rest is "
            "residual.",
            _NOTHING,
            commands=(*_READS, "WRITE", "WRITE ATOMIC", "ORWRITE"),
            takes=("part",),
            hosts=False,
        ),
        "bit-flip": Kind(
            "A wrong bit, within `blocks` if these are given: of what is written on the medium, of "
            "what is only read for that reader only. VERIFY compares it.",
            _corruption("flip"),
            commands=(*_READS, "VERIFY", *_WRITES),
            others=False,
            hosts=False,
        ),
        "torn-write": Kind(
            "Only the front of it reaches the medium.",
            _corruption("torn"),
            commands=_CHANGES,
            others=False,
            hosts=False,
        ),
        "lost-write": Kind(
            "It does not reach the medium.",
            _corruption("lost"),
            commands=_CHANGES,
            others=False,
            hosts=False,
        ),
        "misdirected-write": Kind(
            "It goes to other blocks.",
            _corruption("misdirected"),
            commands=_CHANGES,
            others=False,
            hosts=False,
        ),
        "tmf-failure": Kind(
            "Task management fails with `response`, FAILURE by default: `function`, or all. "
            "`opcodes`: where the function is for one command, ABORT_TASK or QUERY_TASK, only if "
            "it is one of these.",
            _NOTHING,
            takes=("function", "response"),
        ),
        "link-down": Kind(
            "The targets that lead to the unit are gone, BAD TARGET, until this is removed or "
            "`duration` is over; then an I_T nexus loss is reported. `dev_loss` seconds after the "
            "link went down the driver is told that their units are gone, and at the end that they "
            "are back; without it, neither.",
            _NOTHING,
            takes=("dev_loss",),
        ),
    }
)
assert set(KINDS) == set(get_args(KindName))

_OF_KINDS: Final = {field for kind in KINDS.values() for field in kind.takes}
_OF_COMMANDS: Final = ("opcodes", "lba", "blocks", "tag")
_OF_A_TASK: Final = ("ABORT_TASK", "QUERY_TASK")
_COUNTED: Final = ("nth", "every", "times", "probability", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with which commands. None: whatever, or the kind's default.

    `opcodes`: numbers, names as ``READ(10)``, or families as ``READ``; an
    empty list: all. `lba`, `blocks`: commands
    that name one of these. `nexus`: an HBA, by name or number. Of the commands for which all
    this holds, the `nth` is the first one taken, then one of `every` so many, of these the part
    `probability`, drawn by `seed`, and `times` at most. `start`: seconds from now; `duration`:
    seconds.
    """

    kind: KindName
    opcodes: list[int | str] | None = None
    lba: int | None = None
    blocks: int = 1
    nexus: str | None = None
    tag: int | None = None
    nth: int = 1
    every: int = 1
    times: int | None = None
    probability: float = 1.0
    seed: int = 0
    start: float = 0.0
    duration: float | None = None
    response: int | None = None
    status: int | None = None
    key: int | None = None
    code: int | None = None
    executed: bool | None = None
    seconds: float | None = None
    distribution: Distribution | None = None
    spread: float | None = None
    part: float | None = None
    writes: int | None = None
    spares: int | None = None
    unit: int | None = None
    dev_loss: float | None = None
    function: Function | None = None

    def __post_init__(self) -> None:
        """Raises `FaultError`."""
        if self.kind not in KINDS:
            near = did_you_mean(self.kind, list(KINDS))
            raise FaultError("kind", f"{self.kind!r} is none{near}")
        for name in _OF_KINDS - set(KINDS[self.kind].takes):
            if getattr(self, name) is not None:
                raise FaultError(name, f"{self.kind} does not take it")
        for name, least, most in _NUMBERS:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise FaultError(name, f"{value} is not within {least} to {most}")
        for name in self._meaningless():
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise FaultError(name, f"{self.kind} does not take it")
        if self.distribution == "uniform" and (self.spread or 0) < (self.seconds or 0):
            raise FaultError("spread", "the most must not be less than the least, seconds")
        if self.kind == "tmf-failure" and self.opcodes and self.function not in _OF_A_TASK:
            raise FaultError(
                "opcodes",
                f"only {' and '.join(_OF_A_TASK)} are for a command: name one as function",
            )
        opcodes_of(self)

    def _meaningless(self) -> tuple[str, ...]:
        match self.kind:
            case "tmf-failure":
                return _OF_COMMANDS[1:]
            case "link-down":
                return (*_OF_COMMANDS, *_COUNTED)
            case "wear-out":
                return _COUNTED
        return ()

    @property
    def of_commands(self) -> bool:
        """Whether commands are what it concerns."""
        return self.kind not in ("tmf-failure", "link-down")


_NUMBERS: Final = (
    ("lba", 0, _MAX_NUMBER),
    ("blocks", 1, _MAX_NUMBER),
    ("tag", 0, (1 << 64) - 1),
    ("nth", 1, _MAX_NUMBER),
    ("every", 1, _MAX_NUMBER),
    ("times", 1, _MAX_NUMBER),
    ("probability", 0.0, 1.0),
    ("seed", 0, (1 << 64) - 1),
    ("start", 0.0, math.inf),
    ("duration", 0.0, math.inf),
    ("response", 0, 255),
    ("status", 0, 255),
    ("key", 0, 15),
    ("code", 0, 0xFFFF),
    ("seconds", 0.0, LONGEST),
    ("spread", 0.0, LONGEST),
    ("part", 0.0, 1.0),
    ("writes", 0, (1 << 32) - 1),
    ("spares", 0, _MAX_NUMBER),
    ("unit", 1, _MAX_NUMBER),
    ("dev_loss", 0.0, math.inf),
)


# ── Which commands ─────────────────────────────────────────────────────────────────────────────


@cache
def _opcodes() -> Mapping[str, frozenset[int]]:
    """Codes (`CommandType.code`) by name and by family."""
    from vscsi_emu.scsi.commands import ALL

    found: dict[str, set[int]] = {}
    for command in ALL:
        for name in (command.name, command.name.split("(")[0]):
            found.setdefault(name, set()).add(command.code)
    return MappingProxyType({name: frozenset(codes) for name, codes in found.items()})


def opcodes_of(fault: Fault) -> set[int]:
    """Codes (`CommandType.code`) of the commands that it is for; none: all. `FaultError`."""
    wanted: set[int] = set()
    default = list(KINDS[fault.kind].commands)
    for name in default if fault.opcodes is None else fault.opcodes:
        wanted |= _codes(name)
    if not KINDS[fault.kind].others:
        own = frozenset[int]().union(*map(_codes, default))
        if not wanted or not wanted <= own:
            raise FaultError("opcodes", f"{fault.kind} is for {', '.join(default)} only")
    return wanted


def _codes(name: str | int) -> frozenset[int]:
    return _opcodes().get(str(name)) or frozenset({_number(name)})


def _number(name: str | int) -> int:
    try:
        number = int(str(name), 0)
    except ValueError:
        hint = did_you_mean(str(name), list(_opcodes()))
        message = f"{name!r} is neither a number nor a command{hint}"
        raise FaultError("opcodes", message) from None
    if not 0 <= number <= 0xFF:
        raise FaultError("opcodes", f"{number} is not within 0 to 255")
    return number


# ── For the data plane ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Medium:
    """What a unit's commands work on."""

    block_size: int
    """Bytes."""
    blocks: int
    """0: a device without blocks."""
    passthrough: bool
    """A device of the host does the work."""


def rules_of(fault: Fault, medium: Medium) -> list[dict[str, Any]]:
    """Keyword arguments of the `_dataplane.FaultRule`s that it takes, without `port`. `FaultError`
    for what such a medium cannot do."""
    kind = KINDS[fault.kind]
    if medium.passthrough and not kind.hosts:
        raise FaultError(
            "kind",
            f"{fault.kind} is not for devices of the host: their data do not pass here; "
            "serve a file or memory",
        )
    if not fault.of_commands:
        return []
    when: dict[str, Any] = {
        **filter_of(opcodes_of(fault)),
        "blocks": None if fault.lba is None else (fault.lba, fault.lba + fault.blocks - 1),
        "tag": fault.tag,
        "start": fault.start,
        "duration": fault.duration,
        "skip": fault.nth - 1,
        "every": fault.every,
        "times": fault.times or kind.times or 0,
        "probability": None if fault.probability == 1 else fault.probability,
        "seed": fault.seed,
    }
    more = _wear(fault, medium) if fault.kind == "wear-out" else _given(fault)
    return [{**when, **kind.rule, **more}]


def _wear(fault: Fault, medium: Medium) -> Mapping[str, Any]:
    if medium.blocks == 0:
        raise FaultError("kind", "wear-out is for units with blocks")
    whole = fault.lba is None
    first = 0 if fault.lba is None else fault.lba
    last = medium.blocks - 1 if whole else first + fault.blocks - 1
    unit = fault.unit or max(_ERASE_UNIT // medium.block_size, 1)
    while fault.unit is None and (last - first) // unit >= MAX_WEAR_UNITS:
        unit *= 2
    if (units := (last - first) // unit + 1) > MAX_WEAR_UNITS:
        raise FaultError(
            "unit",
            f"{units} units are more than {MAX_WEAR_UNITS}; name larger ones, or less blocks",
        )
    spares = 1 if fault.spares is None else fault.spares
    return {"blocks": (first, last), "wear": (unit, fault.writes or 0, spares)}


def _given(fault: Fault) -> Mapping[str, Any]:
    """What the fields say that only some kinds have."""
    match fault.kind:
        case "answer":
            return _answer(fault)
        case "unit-attention":
            return _check(SenseKey.UNIT_ATTENTION, 0x2900 if fault.code is None else fault.code)
        case "delay":
            first = 0.1 if fault.seconds is None else fault.seconds
            return {"delay": (fault.distribution or "fixed", first, fault.spread or 0.0)}
        case "short-transfer":
            return {"short": 0.5 if fault.part is None else fault.part}
    return _NOTHING


def _answer(fault: Fault) -> Mapping[str, Any]:
    given = fault.key is not None or fault.code is not None
    default = Status.CHECK_CONDITION if given else Status.GOOD
    rule: dict[str, Any] = {
        "answer": (
            fault.response or Response.OK,
            default if fault.status is None else fault.status,
        ),
        "executed": bool(fault.executed),
    }
    if given:
        rule["sense"] = (fault.key or 0, fault.code or 0)
    return rule


def function_of(fault: Fault) -> TmfType | None:
    """The task management function that a `tmf-failure` is for; None: all."""
    return None if fault.function is None else TmfType[fault.function]
