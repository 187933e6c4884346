"""How a command is declared: once, with its CDB fields by name.

The CDB usage map, the check of reserved bits, REPORT SUPPORTED OPERATION CODES and the route table
of the data plane all follow from the declaration.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypedDict

from vscsi_emu.scsi.sense import ScsiError, invalid_field_in_cdb

if TYPE_CHECKING:
    from vscsi_emu.scsi.request import Request

Handler = Callable[["Request"], "bytes | Awaitable[bytes]"]
"""Answers a command with its data-in; raises `ScsiError`. Work that must wait is `async`."""

VARIABLE_LENGTH: Final = 0x7F
"""Operation code of CDBs with CONTROL in byte 1, ADDITIONAL CDB LENGTH, the bytes behind it, in
byte 7, and SERVICE ACTION in bytes 8 and 9 (SPC-6)."""
_ADDITIONAL_LENGTH: Final = 7

SERVICE_ACTION_OPCODES: Final = frozenset(
    {0x48, 0x5E, 0x5F, VARIABLE_LENGTH, 0x83, 0x84, 0x9D, 0x9E, 0x9F, 0xA3, 0xA4, 0xA9, 0xAB}
)
"""Operation codes with a SERVICE ACTION (SPC-6)."""


def service_action_field(opcode: int) -> Field:
    """SERVICE ACTION of CDBs that have one: byte 1, bits 4 to 0, but for variable-length CDBs."""
    return Field(8, 2) if opcode == VARIABLE_LENGTH else Field(1, high=4)


class Route(enum.IntEnum):
    """Who executes a command; the data plane's ``ROUTE_*``."""

    PYTHON = 0
    READ = 1
    WRITE = 2
    MEDIA = 3


class Flag(enum.Flag):
    NONE = 0
    SKIPS_ATTENTION = enum.auto()
    """Is processed whatever unit attention is pending (SAM-6)."""
    NEEDS_READY = enum.auto()
    """Ends with NOT READY while the unit is stopped or has no medium (SBC-4 4.20), or with the
    medium's failure."""
    NEEDS_MEDIUM = enum.auto()
    """Ends with NOT READY while the unit has no medium."""
    ANY_LUN = enum.auto()
    """Is answered for an absent logical unit too (SAM-6)."""
    WELL_KNOWN = enum.auto()
    """Is supported by the REPORT LUNS well known logical unit (SPC-6)."""
    DURING_OVERWRITE = enum.auto()
    """Is processed while SANITIZE or FORMAT UNIT run, as are those that skip unit attentions."""
    IN_STANDBY = enum.auto()
    """Is processed through a target port in the standby state (SPC-4 5.16.2.4.4)."""
    WHEN_UNAVAILABLE = enum.auto()
    """Is processed through a target port in the unavailable state (SPC-4 5.16.2.4.5)."""
    ANY_ACCESS_STATE = IN_STANDBY | WHEN_UNAVAILABLE


class Allowed(enum.Flag):
    """Reservations of another nexus under which a command is processed all the same (SPC-2,
    SPC-4 5.13.1, SBC-4 4.17). What is not declared is `NONE`."""

    NONE = 0
    RESERVED = enum.auto()
    """RESERVE of SPC-2."""
    WRITE_EXCLUSIVE = enum.auto()
    """The persistent reservations of these types."""
    EXCLUSIVE_ACCESS = enum.auto()
    PERSISTENT = WRITE_EXCLUSIVE | EXCLUSIVE_ACCESS
    ALWAYS = RESERVED | PERSISTENT


class Feature(enum.Flag):
    """What a logical unit has, where a command or a field depends on it."""

    NONE = 0
    THIN = enum.auto()
    """Logical block provisioning management (SBC-4 4.7)."""
    REMOVABLE = enum.auto()
    """A medium that can be ejected."""
    COMPARE_AND_WRITE = enum.auto()
    ATOMIC_WRITES = enum.auto()
    """SBC-4 4.29."""
    CDB_32 = enum.auto()
    """32-byte commands of SBC, without the protection information that they are for."""
    SAVED_STATE = enum.auto()
    """Something that outlives the process to save state in."""
    ACA = enum.auto()
    """Auto contingent allegiance (SAM-6): NACA in CONTROL."""


@dataclass(frozen=True, slots=True)
class Field:
    """A CDB field: `size` bytes from `byte` on, big-endian; bits `high`..`low` where it is one."""

    byte: int
    size: int = 1
    high: int = 7
    low: int = 0
    needs: Feature = Feature.NONE
    ignored: bool = False
    """Any value is accepted and none has an effect, so that the usage map does not show it."""
    slow: bool = False
    """Where it is not 0, a command that the data plane executes comes to its handler first."""

    @property
    def mask(self) -> bytes:
        """The field's bits, `size` bytes. `high` bounds the first byte, `low` the last one."""
        width = self.size * 8 - (7 - self.high)
        return ((1 << width) - (1 << self.low)).to_bytes(self.size)

    def extract(self, cdb: bytes) -> int:
        value = int.from_bytes(cdb[self.byte : self.byte + self.size])
        return (value & int.from_bytes(self.mask)) >> self.low

    def insert(self, cdb: bytearray, value: int) -> None:
        """Sets bits that are 0 so that the field has this value, cut to what it can hold."""
        bits = value << self.low & int.from_bytes(self.mask)
        for offset, byte in enumerate(bits.to_bytes(self.size), self.byte):
            cdb[offset] |= byte


def bit(byte: int, number: int, needs: Feature = Feature.NONE) -> Field:
    """A one-bit field."""
    return Field(byte, high=number, low=number, needs=needs)


NACA: Final = 0x04
"""Of the CONTROL byte (SAM-6)."""

OBSOLETE_LUN: Final = Field(1, high=7, low=5, ignored=True)
"""SCSI-2's LOGICAL UNIT NUMBER: EDK II (OVMF) still fills it in when it looks for disks."""


class Filter(TypedDict):
    """Commands as rules and traces of the data plane take them."""

    opcodes: bytes
    actions: list[int]
    """SERVICE ACTIONs of variable-length CDBs."""


def filter_of(codes: Iterable[int]) -> Filter:
    """Commands by their `CommandType.code`, or all that have an operation code."""
    ordered = sorted(codes)
    return {
        "opcodes": bytes(code for code in ordered if code <= 0xFF),
        "actions": [code & 0xFFFF for code in ordered if code > 0xFF],
    }


class Cdb:
    """The fields of a received CDB, by name."""

    def __init__(self, command: CommandType, raw: bytes) -> None:
        self.command = command
        self.raw = raw

    def __getitem__(self, name: str) -> int:
        return self.command.fields[name].extract(self.raw)

    def invalid(self, name: str) -> ScsiError:
        """INVALID FIELD IN CDB that points to this field; to a bit of it where it is one byte."""
        field = self.command.fields[name]
        return invalid_field_in_cdb(field.byte, field.high if field.size == 1 else None)


@dataclass(frozen=True)
class CommandType:
    """One (operation code, service action)."""

    name: str
    opcode: int
    length: int
    """Bytes of the CDB."""
    fields: Mapping[str, Field]
    """Opcode, service action and CONTROL are not among them: every CDB has those."""
    service_action: int | None = None
    route: Route = Route.PYTHON
    flags: Flag = Flag.NONE
    needs: Feature = Feature.NONE
    handler: Handler | None = None
    """None: the data plane executes it."""
    allowed: Allowed | Callable[[Cdb], Allowed] = Allowed.NONE
    """A function where it depends on the CDB."""
    media: bool = False
    """The data plane executes it, also where a handler looks at it before."""
    control: int = 0
    """Bits of the CONTROL byte that are supported."""

    def allowed_for(self, cdb: Cdb) -> Allowed:
        return self.allowed if isinstance(self.allowed, Allowed) else self.allowed(cdb)

    def for_features(self, features: Feature) -> CommandType | None:
        """The command as a unit with `features` supports it, None if it does not."""
        if self.needs not in features:
            return None
        fields = {name: field for name, field in self.fields.items() if field.needs in features}
        control = NACA if Feature.ACA in features else 0
        return replace(self, fields=MappingProxyType(fields), control=control)

    @cached_property
    def usage_map(self) -> bytes:
        """CDB USAGE DATA (SPC-6)."""
        usage = self._bits(field for field in self.fields.values() if not field.ignored)
        return self.named(bytes(usage))

    @cached_property
    def accepted(self) -> bytes:
        """By bit, what may be set in a CDB: all that is in no field is reserved."""
        return self._any_name(self.fields.values())

    @cached_property
    def fast(self) -> bytes:
        """As `accepted`, for the data plane: all else comes to Python."""
        return self._any_name(field for field in self.fields.values() if not field.slow)

    @property
    def code(self) -> int:
        """What filters know it by: OPERATION CODE, but 7F0000h plus SERVICE ACTION where the CDB
        is of variable length."""
        if self.opcode != VARIABLE_LENGTH or self.service_action is None:
            return self.opcode
        return VARIABLE_LENGTH << 16 | self.service_action

    @property
    def control_byte(self) -> int:
        """Where CONTROL is."""
        return 1 if self.opcode == VARIABLE_LENGTH else self.length - 1

    def named(self, fields: bytes) -> bytes:
        """A CDB with these fields: OPERATION CODE, SERVICE ACTION and its own length put in."""
        cdb = bytearray(fields)
        cdb[0] = self.opcode
        if self.service_action is not None:
            service_action_field(self.opcode).insert(cdb, self.service_action)
        if self.opcode == VARIABLE_LENGTH:
            cdb[_ADDITIONAL_LENGTH] = self._additional_length
        return bytes(cdb)

    @property
    def _additional_length(self) -> int:
        return self.length - _ADDITIONAL_LENGTH - 1

    def _any_name(self, fields: Iterable[Field]) -> bytes:
        """The bits of these fields, and all that OPERATION CODE and SERVICE ACTION have."""
        named = bytearray(self.named(bytes(self._bits(fields))))
        named[0] = 0xFF
        if self.service_action is not None:
            action = service_action_field(self.opcode)
            action.insert(named, (1 << 8 * action.size) - 1)
        return bytes(named)

    def _bits(self, fields: Iterable[Field]) -> bytearray:
        bits = bytearray(self.length)
        bits[self.control_byte] = self.control
        for field in fields:
            for offset, mask in enumerate(field.mask, field.byte):
                bits[offset] |= mask
        return bits

    def parse(self, cdb: bytes) -> Cdb:
        """The fields of `cdb`; refuses reserved bits that are set, with a field pointer.

        A CDB is zero-padded where the transport carries fewer bytes than the command has.
        """
        raw = cdb[: self.length].ljust(self.length, b"\0")
        for offset, accepted in enumerate(self.accepted):
            if wrong := raw[offset] & ~accepted:
                raise invalid_field_in_cdb(offset, wrong.bit_length() - 1)
        if self.opcode == VARIABLE_LENGTH and raw[_ADDITIONAL_LENGTH] != self._additional_length:
            raise invalid_field_in_cdb(_ADDITIONAL_LENGTH)
        return Cdb(self, raw)


def command(
    name: str,
    opcode: int,
    length: int,
    *,
    service_action: int | None = None,
    flags: Flag = Flag.NONE,
    allowed: Allowed | Callable[[Cdb], Allowed] = Allowed.NONE,
    **fields: Field,
) -> Callable[[Handler], CommandType]:
    """Declares a command that the decorated function handles."""

    def declare(handler: Handler) -> CommandType:
        return CommandType(
            name,
            opcode,
            length,
            MappingProxyType(fields),
            service_action=service_action,
            flags=flags,
            handler=handler,
            allowed=allowed,
        )

    return declare


def media_command(
    name: str,
    opcode: int,
    length: int,
    route: Route,
    *,
    service_action: int | None = None,
    needs: Feature = Feature.NONE,
    allowed: Allowed = Allowed.NONE,
    handler: Handler | None = None,
    **fields: Field,
) -> CommandType:
    """Declares a command that the data plane executes, after Python with `Route.PYTHON`.

    `handler` decides those that come to Python: it answers, or hands them to the data plane.

    One with a service action has that route, but of variable-length CDBs: the data plane routes
    those by it, all others by operation code. Whatever is routed as a read may be read under a
    write exclusive reservation.
    """
    return CommandType(
        name,
        opcode,
        length,
        MappingProxyType(fields),
        service_action=service_action,
        route=route,
        flags=Flag.NEEDS_READY,
        needs=needs,
        handler=handler,
        media=True,
        allowed=Allowed.WRITE_EXCLUSIVE if route is Route.READ else allowed,
    )
