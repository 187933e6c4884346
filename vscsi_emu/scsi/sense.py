"""Sense keys, additional sense codes, and what becomes CHECK CONDITION (SPC-6)."""

from __future__ import annotations

import errno
from enum import IntEnum

from vscsi_emu import _dataplane


class SenseKey(IntEnum):
    """SPC-6, sense keys."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE


class Asc(IntEnum):
    """Additional sense codes: ASC in the high byte, ASCQ in the low one (SPC-6 annex F)."""

    NO_ADDITIONAL_SENSE = 0x0000
    OPERATION_IN_PROGRESS = 0x0016
    INITIALIZING_COMMAND_REQUIRED = 0x0402
    FORMAT_IN_PROGRESS = 0x0404
    SELF_TEST_IN_PROGRESS = 0x0409
    TARGET_PORT_IN_STANDBY_STATE = 0x040B
    TARGET_PORT_IN_UNAVAILABLE_STATE = 0x040C
    SPACE_ALLOCATION_IN_PROGRESS = 0x0414
    SANITIZE_IN_PROGRESS = 0x041B
    UNREACHABLE_COPY_TARGET = 0x0804
    WRITE_ERROR = 0x0C00
    COPY_TARGET_DEVICE_NOT_REACHABLE = 0x0D02
    INCORRECT_COPY_TARGET_DEVICE_TYPE = 0x0D03
    COPY_TARGET_DEVICE_DATA_UNDERRUN = 0x0D04
    PARAMETER_LIST_LENGTH_ERROR = 0x1A00
    INVALID_COMMAND_OPERATION_CODE = 0x2000
    LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE = 0x2100
    TOKEN_UNKNOWN = 0x2304
    TOKEN_CORRUPT = 0x2305
    TOKEN_EXPIRED = 0x2307
    TOKEN_CANCELLED = 0x2308
    TOKEN_DELETED = 0x2309
    INVALID_TOKEN_LENGTH = 0x230A
    INVALID_FIELD_IN_CDB = 0x2400
    LOGICAL_UNIT_NOT_SUPPORTED = 0x2500
    INVALID_FIELD_IN_PARAMETER_LIST = 0x2600
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION = 0x2604
    TOO_MANY_TARGET_DESCRIPTORS = 0x2606
    UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE = 0x2607
    TOO_MANY_SEGMENT_DESCRIPTORS = 0x2608
    UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE = 0x2609
    INLINE_DATA_LENGTH_EXCEEDED = 0x260B
    WRITE_PROTECTED = 0x2700
    SPACE_ALLOCATION_FAILED_WRITE_PROTECT = 0x2707
    MEDIUM_MAY_HAVE_CHANGED = 0x2800
    POWER_ON_OCCURRED = 0x2901
    SCSI_BUS_RESET_OCCURRED = 0x2902
    BUS_DEVICE_RESET_FUNCTION_OCCURRED = 0x2903
    DEVICE_INTERNAL_RESET = 0x2904
    I_T_NEXUS_LOSS_OCCURRED = 0x2907
    PARAMETERS_CHANGED = 0x2A00
    MODE_PARAMETERS_CHANGED = 0x2A01
    LOG_PARAMETERS_CHANGED = 0x2A02
    RESERVATIONS_PREEMPTED = 0x2A03
    RESERVATIONS_RELEASED = 0x2A04
    REGISTRATIONS_PREEMPTED = 0x2A05
    ASYMMETRIC_ACCESS_STATE_CHANGED = 0x2A06
    PRIORITY_CHANGED = 0x2A08
    CAPACITY_DATA_HAS_CHANGED = 0x2A09
    TIMESTAMP_CHANGED = 0x2A10
    COMMAND_SEQUENCE_ERROR = 0x2C00
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = 0x2F00
    COMMANDS_CLEARED_BY_DEVICE_SERVER = 0x2F02
    MEDIUM_FORMAT_CORRUPTED = 0x3100
    SANITIZE_COMMAND_FAILED = 0x3103
    THIN_PROVISIONING_SOFT_THRESHOLD_REACHED = 0x3807
    SAVING_PARAMETERS_NOT_SUPPORTED = 0x3900
    LOGICAL_UNIT_FAILED_SELF_TEST = 0x3E03
    MEDIUM_NOT_PRESENT = 0x3A00
    INQUIRY_DATA_HAS_CHANGED = 0x3F03
    DEVICE_IDENTIFIER_CHANGED = 0x3F05
    REPORTED_LUNS_DATA_HAS_CHANGED = 0x3F0E
    INTERNAL_TARGET_FAILURE = 0x4400
    MEDIUM_REMOVAL_PREVENTED = 0x5302
    INSUFFICIENT_RESOURCES = 0x5503
    IDLE_CONDITION_ACTIVATED_BY_COMMAND = 0x5E03
    STANDBY_CONDITION_ACTIVATED_BY_COMMAND = 0x5E04
    IDLE_B_CONDITION_ACTIVATED_BY_COMMAND = 0x5E06
    IDLE_C_CONDITION_ACTIVATED_BY_COMMAND = 0x5E08
    STANDBY_Y_CONDITION_ACTIVATED_BY_COMMAND = 0x5E0A


class ScsiError(Exception):
    """Ends a command with CHECK CONDITION and this sense data.

    `field` and `bit` are the field pointer of ILLEGAL REQUEST: a byte offset and the number of
    the most significant wrong bit in it; `in_cdb` says whether in the CDB or the parameter list.
    `progress`: of NOT READY, in parts of 65536.
    `deferred`: the error of an earlier command, whose status was GOOD.
    `data`: data-in of the command all the same. `code` may be any ASC and ASCQ.
    """

    def __init__(
        self,
        key: SenseKey,
        code: int,
        *,
        field: int | None = None,
        bit: int | None = None,
        in_cdb: bool = True,
        information: int | None = None,
        deferred: bool = False,
        progress: int | None = None,
        data: bytes = b"",
    ) -> None:
        known = code in Asc.__members__.values()
        super().__init__(f"{key.name} {Asc(code).name if known else f'{code:04X}h'}")
        self.key = key
        self.code = code
        self.field = field
        self.bit = bit
        self.in_cdb = in_cdb
        self.information = information
        self.deferred = deferred
        self.progress = progress
        self.data = data

    def sense(self, *, descriptor: bool) -> bytes:
        """Sense data in descriptor or fixed format."""
        return _dataplane.build_sense(
            self.key,
            self.code >> 8,
            self.code & 0xFF,
            descriptor=descriptor,
            deferred=self.deferred,
            information=self.information,
            field=self.field,
            bit=self.bit,
            in_cdb=self.in_cdb,
            progress=self.progress,
        )


def write_failed(error: OSError) -> ScsiError:
    """What an initiator is told of the storage's error, as the data plane tells it."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return ScsiError(SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED_WRITE_PROTECT)
        case errno.EAGAIN:
            return ScsiError(SenseKey.NOT_READY, Asc.SPACE_ALLOCATION_IN_PROGRESS)
        case _:
            return ScsiError(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR)


class DataOutTooShort(Exception):
    """The CDB asks for more data-out than the command came with; the transport has the answer."""


def invalid_field_in_cdb(field: int, bit: int | None = None) -> ScsiError:
    return ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB, field=field, bit=bit)


def invalid_field_in_parameter_list(field: int, bit: int | None = None) -> ScsiError:
    return ScsiError(
        SenseKey.ILLEGAL_REQUEST,
        Asc.INVALID_FIELD_IN_PARAMETER_LIST,
        field=field,
        bit=bit,
        in_cdb=False,
    )
