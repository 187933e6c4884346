"""One declaration a command: everything else must agree with it."""

import pytest

from tests.unit.scsi.harness import Recorder, bad_cdb, cdb_of, make_target, make_unit, refused, send
from vscsi_emu import _dataplane
from vscsi_emu.scsi import (
    REPORT_LUNS_WLUN,
    Asc,
    Feature,
    Limits,
    Route,
    SenseKey,
    Status,
    handle,
    route_table,
)
from vscsi_emu.scsi.cdb import (
    SERVICE_ACTION_OPCODES,
    VARIABLE_LENGTH,
    Cdb,
    CommandType,
    Field,
    Flag,
    bit,
    filter_of,
)
from vscsi_emu.scsi.commands import ALL
from vscsi_emu.scsi.copy_operations import Operation, State
from vscsi_emu.scsi.table import command_table

MEDIA = {
    _dataplane.ROUTE_READ: {0x08, 0x28, 0xA8, 0x88},
    _dataplane.ROUTE_WRITE: {
        *(0x0A, 0x2A, 0xAA, 0x8A),
        *(0x2E, 0xAE, 0x8E),
        *(0x41, 0x93),
        0x42,
        *(0x89, 0x8B, 0x9C),
    },
    _dataplane.ROUTE_MEDIA: {0x2F, 0xAF, 0x8F, 0x35, 0x91, 0x34, 0x90},
}
ALL_FEATURES = (
    Feature.THIN | Feature.COMPARE_AND_WRITE | Feature.ATOMIC_WRITES | Feature.ACA | Feature.CDB_32
)


PERSISTENT_RESERVE_OUT = 0x5F
"""Takes a parameter list of exactly 24 bytes."""


def commands() -> list[CommandType]:
    return list(command_table(ALL_FEATURES))


def name(command: object) -> str:
    return command.name if isinstance(command, CommandType) else str(command)


# ── Routes ─────────────────────────────────────────────────────────────────────────────────────


def test_route_values_are_the_data_planes() -> None:
    assert [int(route) for route in Route] == [
        _dataplane.ROUTE_PYTHON,
        _dataplane.ROUTE_READ,
        _dataplane.ROUTE_WRITE,
        _dataplane.ROUTE_MEDIA,
    ]


def test_routes_of_a_unit_that_has_all() -> None:
    routes = route_table(ALL_FEATURES)
    assert len(routes) == 256
    for route, opcodes in MEDIA.items():
        assert {opcode for opcode in range(256) if routes[opcode] == route} == opcodes


def test_routes_of_variable_length_cdbs() -> None:
    table = command_table(ALL_FEATURES)
    routes = {action: route for action, route, _ in table.variable_length}
    assert routes == {
        0x09: _dataplane.ROUTE_READ,
        0x0A: _dataplane.ROUTE_MEDIA,
        **dict.fromkeys((0x0B, 0x0C, 0x0D), _dataplane.ROUTE_WRITE),
    }
    for action, _, usage in table.variable_length:
        command = table.get(VARIABLE_LENGTH, action)
        assert command is not None
        assert usage == command.fast
        assert usage[7:10].hex() == "18ffff"


def test_unmap_is_not_routed_without_thin_provisioning() -> None:
    assert route_table()[0x42] == Route.PYTHON
    assert route_table()[0x41] == Route.WRITE


def test_commands_that_the_limits_rule_out_do_not_exist() -> None:
    unit = make_unit(limits=Limits())
    for opcode in (0x89, 0x9C):
        assert not unit.commands.supports_opcode(opcode)
        assert make_unit().commands.supports_opcode(opcode)


def test_no_two_declarations_are_the_same_command() -> None:
    keys = [(command.opcode, command.service_action) for command in ALL]
    assert len(keys) == len(set(keys))


# ── Fields and usage maps ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("field", "cdb", "value"),
    [
        (Field(2, 4), "00 00 12345678 00", 0x12345678),
        (Field(1, 3, high=4), "00 ff ffff", 0x1FFFFF),
        (Field(1, high=2, low=1), "00 06", 3),
        (Field(2, high=7, low=6), "00 00 80", 2),
        (bit(1, 3), "00 08", 1),
        (bit(1, 3), "00 f7", 0),
    ],
)
def test_field(field: Field, cdb: str, value: int) -> None:
    assert field.extract(bytes.fromhex(cdb)) == value


@pytest.mark.parametrize(
    ("opcode", "action", "usage"),
    [
        (0x00, None, "00 00 00 00 00 00"),
        (0x03, None, "03 01 00 00 ff 00"),
        (0x08, None, "08 1f ff ff ff 00"),
        (0x12, None, "12 01 ff ff ff 00"),
        (0x1A, None, "1a 08 ff ff ff 00"),
        (0x1B, None, "1b 01 00 0f f5 00"),
        (0x28, None, "28 18 ffffffff 00 ffff 00"),
        (0x2A, None, "2a 18 ffffffff 00 ffff 00"),
        (0x2F, None, "2f 16 ffffffff 00 ffff 00"),
        (0x35, None, "35 02 ffffffff 00 ffff 00"),
        (0x41, None, "41 08 ffffffff 00 ffff 00"),
        (0x42, None, "42 00 00000000 00 ffff 00"),
        (0x04, None, "04 3f 00 00 00 00"),
        (0x48, 0x01, "48 a1 00 00 00 00 00 ffff 00"),
        (0x48, 0x1F, "48 1f 00 00 00 00 00 ffff 00"),
        (0x3F, None, "3f c0 ffffffff 00 0000 00"),
        (0x9F, 0x11, "9f d1 ffffffffffffffff 0000 0000 00 00"),
        (0x55, None, "55 10 00 00 00 00 00 ffff 00"),
        (0x34, None, "34 02 ffffffff 00 ffff 00"),
        (0x37, None, "37 00 1f 00000000 ffff 00"),
        (0x89, None, "89 18 ffffffffffffffff 000000 ff 00 00"),
        (0x8A, None, "8a 18 ffffffffffffffff ffffffff 00 00"),
        (0x93, None, "93 09 ffffffffffffffff ffffffff 00 00"),
        (0x8B, None, "8b 18 ffffffffffffffff ffffffff 00 00"),
        (0x90, None, "90 02 ffffffffffffffff ffffffff 00 00"),
        (0x9C, None, "9c 18 ffffffffffffffff 0000 ffff 00 00"),
        (0x9E, 0x12, "9e 12 ffffffffffffffff ffffffff 00 00"),
        (0xB7, None, "b7 1f 00000000 ffffffff 00 00"),
        (0x9E, 0x10, "9e 10 0000000000000000 ffffffff 00 00"),
        (0xA3, 0x0C, "a3 0c 87 ff ffff ffffffff 00 00"),
        (0xA8, None, "a8 18 ffffffff ffffffff 00 00"),
        (0x7F, 0x09, "7f 00 00000000 00 18 0009 18 00 ffffffffffffffff 0000000000000000 ffffffff"),
        (0x7F, 0x0A, "7f 00 00000000 00 18 000a 16 00 ffffffffffffffff 0000000000000000 ffffffff"),
        (0x7F, 0x0B, "7f 00 00000000 00 18 000b 18 00 ffffffffffffffff 0000000000000000 ffffffff"),
        (0x7F, 0x0C, "7f 00 00000000 00 18 000c 16 00 ffffffffffffffff 0000000000000000 ffffffff"),
        (0x7F, 0x0D, "7f 00 00000000 00 18 000d 09 00 ffffffffffffffff 0000000000000000 ffffffff"),
    ],
)
def test_usage_map(opcode: int, action: int | None, usage: str) -> None:
    # Of a unit without ACA: `test_naca_is_all_that_control_has`.
    command = command_table(ALL_FEATURES & ~Feature.ACA).get(opcode, action)
    assert command is not None
    assert command.usage_map.hex() == bytes.fromhex(usage).hex()
    assert command.length == len(command.usage_map)


def test_sp_needs_somewhere_to_save_to() -> None:
    for opcode in (0x15, 0x55):
        for features, usage in ((Feature.NONE, 0x10), (Feature.SAVED_STATE, 0x11)):
            command = command_table(features).get(opcode, None)
            assert command is not None
            assert command.usage_map[1] == usage


def test_the_unmap_bit_needs_thin_provisioning() -> None:
    command = command_table(Feature.NONE).get(0x93, None)
    assert command is not None
    assert command.usage_map[1] == 0x01
    assert refused(make_target(make_unit(discard=False)), "9308") == bad_cdb(1, 3)


@pytest.mark.parametrize("command", commands(), ids=name)
def test_naca_is_all_that_control_has(command: CommandType) -> None:
    assert command.usage_map[command.control_byte] == 0x04
    without = command_table(ALL_FEATURES & ~Feature.ACA).get(command.opcode, command.service_action)
    assert without is not None
    naca = bytes(4 if byte == command.control_byte else 0 for byte in range(command.length))
    assert bytes(a | b for a, b in zip(without.usage_map, naca, strict=True)) == command.usage_map


@pytest.mark.parametrize("lun", [9, REPORT_LUNS_WLUN])
def test_naca_needs_a_logical_unit_with_a_task_set(lun: int) -> None:
    target = make_target(make_unit())
    assert refused(target, "120000002404", lun=lun) == bad_cdb(5, 2)
    assert send(target, "120000002404").status == Status.GOOD


@pytest.mark.parametrize("command", commands(), ids=name)
def test_fields_lie_in_the_cdb_and_do_not_overlap(command: CommandType) -> None:
    used = bytearray(command.length)
    used[0] = used[command.control_byte] = 0xFF
    if command.opcode == VARIABLE_LENGTH:
        used[7:10] = b"\xff\xff\xff"
    elif command.service_action is not None:
        used[1] = 0x1F
    for field in command.fields.values():
        for offset, mask in enumerate(field.mask, field.byte):
            assert not used[offset] & mask
            used[offset] |= mask
    assert (command.opcode in SERVICE_ACTION_OPCODES) == (command.service_action is not None)
    length = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}.get(command.opcode >> 5)
    assert len(command.usage_map) == (32 if command.opcode == VARIABLE_LENGTH else length)


@pytest.mark.parametrize("command", commands(), ids=name)
def test_the_usage_map_shows_all_that_is_accepted_but_what_is_ignored(command: CommandType) -> None:
    ignored = bytearray(command.length)
    for field in command.fields.values():
        for offset, mask in enumerate(field.mask if field.ignored else b"", field.byte):
            ignored[offset] |= mask
    action = {1} if command.service_action is not None else set()
    named = {0} | ({8, 9} if command.opcode == VARIABLE_LENGTH else action)
    for byte in set(range(command.length)) - named:
        assert command.accepted[byte] & ~ignored[byte] == command.usage_map[byte]


@pytest.mark.parametrize(
    "cdb",
    ["00e0", "03e0000012", "12e0000024", "1ae83f00ff", "5ae83f0000000000ff", "25e0", "1be0000001"],
)
def test_the_obsolete_lun_field_is_ignored(cdb: str) -> None:
    assert send(make_target(make_unit()), cdb).status == Status.GOOD


@pytest.mark.parametrize("command", commands(), ids=name)
def test_every_reserved_bit_is_refused_with_its_pointer(command: CommandType) -> None:
    target = make_target(make_unit(cdb_32=True))
    base = cdb_of(command)
    for offset in range(1, command.length):
        known = command.accepted[offset]
        for number in range(8):
            if not known >> number & 1:
                cdb = bytearray(base)
                cdb[offset] ^= 1 << number
                assert refused(target, bytes(cdb)) == bad_cdb(offset, number)


@pytest.mark.parametrize("command", commands(), ids=name)
def test_a_handler_reads_every_field_it_declares(
    command: CommandType, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command.media:
        return
    read = set()

    def reading(cdb: Cdb, field: str) -> int:
        read.add(field)
        return original(cdb, field)

    original = Cdb.__getitem__
    monkeypatch.setattr(Cdb, "__getitem__", reading)
    # Each field in turn is 1, then 2, so that every branch is gone into; lengths leave room for
    # data.
    length = 24 if command.opcode == PERSISTENT_RESERVE_OUT else 255
    lengths = {name: length for name in command.fields if name.endswith("length")}
    mode_page = bytes(8) + b"\x08\x12" + bytes(245)
    small = [{name: 1} for name in command.fields]
    small += [
        {name: 2} for name, field in command.fields.items() if field.extract(b"\xff" * 16) > 1
    ]
    for chosen in ({}, *small):
        target = make_target(make_unit())
        for list_id in range(2):
            target.nexuses[0].copies.start(list_id)
            target.nexuses[0].operations.start(list_id, Operation(0x10, State.COMPLETED))
            target.nexuses[0].copies.end(list_id, error=None, hold=True)
        send(target, cdb_of(command, **{**lengths, **chosen}), data_out=mode_page)
    assert read == {name for name, field in command.fields.items() if not field.ignored}


# ── Finding a command ──────────────────────────────────────────────────────────────────────────


def test_unknown_operation_codes() -> None:
    target = make_target(make_unit())
    known = {command.opcode for command in commands()}
    for opcode in set(range(256)) - known:
        sense = refused(target, bytes([opcode]))
        assert (sense.key, sense.code) == (
            SenseKey.ILLEGAL_REQUEST,
            Asc.INVALID_COMMAND_OPERATION_CODE,
        )
        assert sense.pointer is not None
        assert sense.pointer[0] == 0


def test_unknown_service_actions_of_variable_length_cdbs() -> None:
    target = make_target(make_unit(cdb_32=True))
    known = {c.service_action for c in commands() if c.opcode == VARIABLE_LENGTH}
    assert known == {0x09, 0x0A, 0x0B, 0x0C, 0x0D}
    for action in {*range(32), 0x0109, 0x0900, 0xFFFF} - known:
        cdb = b"\x7f" + bytes(6) + b"\x18" + action.to_bytes(2) + bytes(22)
        assert refused(target, cdb) == bad_cdb(8, 7)


@pytest.mark.parametrize("length", [0, 8, 0x10, 0x17, 0x19, 0x98])
def test_a_variable_length_cdb_says_its_length(length: int) -> None:
    cdb = b"\x7f" + bytes(6) + bytes([length, 0, 9]) + bytes(22)
    wrong = (length & ~0x18).bit_length() - 1
    assert refused(make_target(make_unit(cdb_32=True)), cdb) == bad_cdb(
        7, wrong if wrong >= 0 else None
    )


def test_32_byte_commands_are_there_on_request() -> None:
    cdb = cdb_of(next(entry for entry in commands() if entry.name == "READ(32)"))
    assert send(make_target(make_unit(cdb_32=True)), cdb).executed
    assert refused(make_target(make_unit()), cdb).code == Asc.INVALID_COMMAND_OPERATION_CODE


def test_filters_name_variable_length_cdbs_by_service_action() -> None:
    codes = {entry.name: entry.code for entry in commands()}
    assert codes["READ(10)"] == 0x28
    assert codes["GET LBA STATUS"] == 0x9E
    chosen = {codes[name] for name in ("WRITE(32)", "READ(32)", "READ(10)")} | {0x7F}
    assert filter_of(chosen) == {"opcodes": b"\x28\x7f", "actions": [0x09, 0x0B]}


@pytest.mark.parametrize("opcode", [0x48, 0x9E, 0x9F, 0xA3])
def test_unknown_service_actions(opcode: int) -> None:
    target = make_target(make_unit())
    known = {c.service_action for c in commands() if c.opcode == opcode}
    for action in set(range(32)) - known:
        assert refused(target, bytes([opcode, action])) == bad_cdb(1, 4)


def test_a_short_cdb_is_padded_with_zeros() -> None:
    command = Recorder(b"\x28")
    assert handle(command, make_target(make_unit()), 0) is None
    assert command.executed


@pytest.mark.parametrize("command", commands(), ids=name)
def test_media_commands_go_to_the_data_plane(command: CommandType) -> None:
    executed = send(make_target(make_unit(cdb_32=True)), cdb_of(command)).executed
    assert executed == command.media
    # The data plane knows service actions of variable-length CDBs only: Python sees others first.
    if command.route is not Route.PYTHON:
        assert executed
        assert command.service_action is None or command.opcode == VARIABLE_LENGTH
    assert not executed or Flag.NEEDS_READY in command.flags
