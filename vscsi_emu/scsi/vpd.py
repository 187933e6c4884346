"""Vital product data pages (SPC-6, SBC-4 6.6)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from vscsi_emu.scsi import copy, token_lists, tokens
from vscsi_emu.scsi.mode_pages import ALL_PAGES, ALL_SUBPAGES
from vscsi_emu.scsi.peripheral import Peripheral
from vscsi_emu.scsi.target import Target
from vscsi_emu.scsi.unit import LogicalUnit

SUPPORTED_PAGES: Final = 0x00
UNIT_SERIAL_NUMBER: Final = 0x80
DEVICE_IDENTIFICATION: Final = 0x83
EXTENDED_INQUIRY: Final = 0x86
MODE_PAGE_POLICY: Final = 0x87
POWER_CONDITION: Final = 0x8A
THIRD_PARTY_COPY: Final = 0x8F
BLOCK_LIMITS: Final = 0xB0
BLOCK_CHARACTERISTICS: Final = 0xB1
PROVISIONING: Final = 0xB2


@dataclass(frozen=True, slots=True)
class PageContext:
    """What a page may speak of. `unit` is None where nothing or a well known unit is addressed."""

    peripheral: Peripheral
    unit: LogicalUnit | None
    target: Target


def vpd_page(code: int, context: PageContext) -> bytes | None:
    """A page with its header; None for one that is not supported there."""
    pages = _pages(context)
    if code == SUPPORTED_PAGES:
        body = bytes([SUPPORTED_PAGES, *pages])
    elif code in pages:
        body = pages[code]()
    else:
        return None
    return struct.pack(">BBH", context.peripheral, code, len(body)) + body


def _pages(context: PageContext) -> Mapping[int, Callable[[], bytes]]:
    unit, target = context.unit, context.target
    if context.peripheral is Peripheral.WELL_KNOWN:
        return {DEVICE_IDENTIFICATION: lambda: _port_designators(target)}
    if unit is None:
        return {}
    pages: dict[int, Callable[[], bytes]] = {
        UNIT_SERIAL_NUMBER: lambda: unit.identity.serial_field,
        # The unit first: initiators of EXTENDED COPY take the first NAA name for the unit's.
        DEVICE_IDENTIFICATION: lambda: (
            b"".join(unit_designators(unit)) + _port_designators(target) + _port_group(target)
        ),
    }
    if unit.peripheral is not Peripheral.DIRECT_ACCESS:
        return MappingProxyType(pages)
    pages |= {
        EXTENDED_INQUIRY: lambda: _EXTENDED_INQUIRY_BODY,
        MODE_PAGE_POLICY: lambda: _MODE_PAGE_POLICY_BODY,
        POWER_CONDITION: lambda: _POWER_CONDITION_BODY,
        THIRD_PARTY_COPY: lambda: _third_party_copy(unit),
        BLOCK_LIMITS: lambda: _block_limits(unit),
        BLOCK_CHARACTERISTICS: lambda: _block_characteristics(unit),
    }
    if unit.thin:
        pages[PROVISIONING] = lambda: _provisioning(unit)
    return MappingProxyType(pages)


# ── Device identification (SPC-6) ──────────────────────────────────────────────────────────────

_BINARY, _ASCII, _UTF8 = 1, 2, 3
_UNIT, _PORT = 0x00, 0x10
_T10_VENDOR, _NAA, _RELATIVE_PORT, _PORT_GROUP, _SCSI_NAME = 1, 3, 4, 5, 8


def _designator(code_set: int, association: int, kind: int, value: bytes) -> bytes:
    return bytes([code_set, association | kind, 0, len(value)]) + value


def _scsi_name(naa: bytes) -> bytes:
    """SCSI name string: NUL-terminated, padded to a multiple of 4 (SPC-6)."""
    name = b"naa." + naa.hex().upper().encode()
    return name + bytes(4 - len(name) % 4)


def unit_designators(unit: LogicalUnit) -> tuple[bytes, ...]:
    """What a logical unit is called, each with its header."""
    identity = unit.identity
    t10 = identity.vendor_field + identity.product_field + identity.serial_field
    return (
        _designator(_BINARY, _UNIT, _NAA, identity.naa),
        _designator(_ASCII, _UNIT, _T10_VENDOR, t10),
        _designator(_UTF8, _UNIT, _SCSI_NAME, _scsi_name(identity.naa)),
    )


def _port_designators(target: Target) -> bytes:
    designators = [
        _designator(_BINARY, _PORT, _RELATIVE_PORT, struct.pack(">I", target.relative_port)),
    ]
    if target.naa is not None:
        designators += [
            _designator(_BINARY, _PORT, _NAA, target.naa),
            _designator(_UTF8, _PORT, _SCSI_NAME, _scsi_name(target.naa)),
        ]
    return b"".join(designators)


def _port_group(target: Target) -> bytes:
    """Target port group (SPC-4 7.8.6.8), which a port is in with respect to a logical unit."""
    return _designator(_BINARY, _PORT, _PORT_GROUP, struct.pack(">2xH", target.port_group))


# ── Extended INQUIRY data, mode page policy (SPC-6) ────────────────────────────────────────────

_TASK_ATTRIBUTES: Final = 0x07
_V_SUP: Final = 0x01
_LUICLR: Final = 0x01

# Byte 4 onwards. HEADSUP, ORDSUP and SIMPSUP.
_EXTENDED_INQUIRY_BODY: Final = bytes([0, _TASK_ATTRIBUTES, _V_SUP, _LUICLR]).ljust(0x3C, b"\0")

_SHARED: Final = 0
_MODE_PAGE_POLICY_BODY: Final = bytes([ALL_PAGES, ALL_SUBPAGES, _SHARED, 0])

# ── Power condition (SPC-6) ────────────────────────────────────────────────────────────────────

_STANDBY_Y_AND_Z: Final = 0x03
_IDLE_A_TO_C: Final = 0x07
# Waking takes no time, stopping neither.
_POWER_CONDITION_BODY: Final = bytes([_STANDBY_Y_AND_Z, _IDLE_A_TO_C]).ljust(0x0E, b"\0")

# ── Third-party copy (SPC-6) ───────────────────────────────────────────────────────────────────

_TOKEN_LIMITS: Final = 0x0000
_SUPPORTED_COMMANDS: Final = 0x0001
_PARAMETER_DATA: Final = 0x0004
_SUPPORTED_DESCRIPTORS: Final = 0x0008
_SUPPORTED_CSCD_IDS: Final = 0x000C
_TOKEN_FEATURES: Final = 0x0106
_SUPPORTED_ROD_TYPES: Final = 0x0108
_GENERAL_COPY_OPERATIONS: Final = 0x8001
_COPY_OPCODES: Final = (0x83, 0x84)
_TOKEN_IN: Final = 0x02
_TOKEN_OUT: Final = 0x01


def _third_party_copy(unit: LogicalUnit) -> bytes:
    commands = b""
    for opcode in _COPY_OPCODES:
        actions = bytes(c.service_action or 0 for c in unit.commands if c.opcode == opcode)
        commands += bytes([opcode, len(actions)]) + actions
    types = copy.DESCRIPTOR_TYPES
    return b"".join(
        (
            _copy_descriptor(
                _TOKEN_LIMITS,
                struct.pack(
                    ">6xHIIQQ",
                    token_lists.MAX_RANGES,
                    tokens.MAX_TIMEOUT,
                    tokens.DEFAULT_TIMEOUT,
                    token_lists.MAX_TRANSFER_BYTES // unit.block_size,
                    token_lists.OPTIMAL_TRANSFER_BYTES // unit.block_size,
                ),
            ),
            _copy_descriptor(_SUPPORTED_COMMANDS, bytes([len(commands)]) + commands),
            _copy_descriptor(
                _PARAMETER_DATA,
                struct.pack(
                    ">4xHHII12x",
                    copy.MAX_TARGETS,
                    copy.MAX_SEGMENTS,
                    copy.MAX_DESCRIPTORS_BYTES,
                    0,
                ),
            ),
            _copy_descriptor(_SUPPORTED_DESCRIPTORS, bytes([len(types)]) + types),
            _copy_descriptor(_SUPPORTED_CSCD_IDS, struct.pack(">HH", 2, copy.THIS_UNIT)),
            _copy_descriptor(
                _TOKEN_FEATURES,
                # No remote tokens; a token lives as long as it is used.
                struct.pack(">12xIII18xH", 0, 0, tokens.MAX_TIMEOUT, 0),
            ),
            _copy_descriptor(
                _SUPPORTED_ROD_TYPES,
                struct.pack(">2xH", 2 * 64)
                + struct.pack(">IB59x", tokens.CHANGE_VULNERABLE, _TOKEN_IN | _TOKEN_OUT)
                + struct.pack(">IB59x", tokens.ZERO, _TOKEN_IN),
            ),
            _copy_descriptor(
                _GENERAL_COPY_OPERATIONS,
                struct.pack(
                    ">IIIBB18x",
                    copy.CONCURRENT_COPIES,
                    copy.CONCURRENT_COPIES,
                    copy.MAX_SEGMENT_BYTES,
                    copy.GRANULARITY,
                    0,
                ),
            ),
        )
    )


def _copy_descriptor(kind: int, body: bytes) -> bytes:
    """Padded to a multiple of 4 bytes."""
    body += bytes(-len(body) % 4)
    return struct.pack(">HH", kind, len(body)) + body


# ── Block device pages (SBC-4 6.6) ─────────────────────────────────────────────────────────────

_UGAVALID: Final = 1 << 31
_BLOCK_LIMITS_LAYOUT: Final = struct.Struct(">BBHIIIIIIIQIII8x")
_BLOCK_CHARACTERISTICS_LAYOUT: Final = struct.Struct(">HxBB55x")


def _block_limits(unit: LogicalUnit) -> bytes:
    limits, thin = unit.block_limits, unit.thin
    return _BLOCK_LIMITS_LAYOUT.pack(
        0,  # WSNZ: WRITE SAME of 0 blocks goes to the end of the medium
        limits.max_compare_and_write_blocks,
        limits.optimal_granularity_blocks,
        limits.max_transfer_blocks,
        limits.optimal_transfer_blocks,
        0,  # no limit of PRE-FETCH
        limits.max_unmap_blocks if thin else 0,
        limits.max_unmap_descriptors if thin else 0,
        limits.unmap_granularity_blocks if thin else 0,
        (_UGAVALID | limits.unmap_alignment) if thin else 0,
        limits.max_write_same_blocks,
        limits.max_atomic_blocks,
        limits.atomic_granularity_blocks,  # ATOMIC ALIGNMENT
        limits.atomic_granularity_blocks,
        # No atomic boundaries.
    )


# After SANITIZE erased the medium, reads complete without error.
_WABEREQ: Final = 1 << 6
_WACEREQ: Final = 1 << 4
_BOCS: Final = 1 << 2
# FUA and SYNCHRONIZE CACHE mean the medium, as they have since SBC-3.
_FUAB: Final = 1 << 1
# VERIFY compares unmapped blocks like all others.
_VBULS: Final = 1 << 0


def _block_characteristics(unit: LogicalUnit) -> bytes:
    return _BLOCK_CHARACTERISTICS_LAYOUT.pack(
        unit.rotation_rate, _WABEREQ | _WACEREQ, _BOCS | _FUAB | _VBULS
    )


_LBPU_LBPWS_LBPWS10: Final = 0xE0
_LBPRZ_ZEROS: Final = 1 << 2
_DP: Final = 1
_THIN: Final = 2


def _provisioning(unit: LogicalUnit) -> bytes:
    """Nothing is anchored: ANC_SUP is 0."""
    thin = unit.provisioning.thin
    lbprz = _LBPRZ_ZEROS if unit.lbprz else 0
    if thin is None:
        return bytes([0, _LBPU_LBPWS_LBPWS10 | lbprz, _THIN, 0])
    group = b"" if thin.pool is None else _designator(_BINARY, _UNIT, _NAA, thin.pool)
    flags = _LBPU_LBPWS_LBPWS10 | lbprz | (_DP if group else 0)
    return bytes([unit.provisioning.exponent, flags, _THIN, 0]) + group
