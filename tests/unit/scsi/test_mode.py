"""MODE SENSE and MODE SELECT (SPC-6; SBC-4 6.5)."""

import struct
from collections.abc import Callable

import pytest

from tests.unit.scsi.harness import (
    Recorder,
    Sense,
    bad_cdb,
    bad_list,
    good,
    make_target,
    make_unit,
    refused,
    send,
)
from tests.unit.scsi.reserving import MemoryStore
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, DataOutTooShort, SenseKey, Target, handle
from vscsi_emu.scsi.store import SavedStateError

PAGES = {
    "01": "010a c0 00000000000000 0000",
    "02": "020e" + "00" * 14,
    "08": "0812 04" + "00" * 17,
    "0a": "0a0a 02 10" + "00" * 8,
    "0a01": "4a01 001c 07" + "00" * 27,
    "1a": "1a26" + "00" * 38,
    "1c": "1c0a 08" + "00" * 9,
}
ORDER = ["01", "02", "08", "0a", "0a01", "1a", "1c"]
SHORT_LIST_ERROR = Sense(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)


def page(*names: str) -> bytes:
    return bytes.fromhex("".join(PAGES[name] for name in names))


def sense_6(target: Target, code: int, subpage: int = 0, *, control: int = 0) -> bytes:
    """The pages that MODE SENSE(6) returns, with the header and no descriptor taken off."""
    data = good(target, bytes([0x1A, 8, control << 6 | code, subpage, 255]))
    assert data[0] == len(data) - 1
    assert data[3] == 0
    return data[4:]


def select_6(pages: bytes) -> tuple[bytes, bytes]:
    data = bytes(4) + pages
    return bytes([0x15, 0x10, 0, 0, len(data)]), data


def select_10(pages: bytes) -> tuple[bytes, bytes]:
    data = bytes(8) + pages
    return bytes([0x55, 0x10, 0, 0, 0, 0, 0]) + len(data).to_bytes(2), data


def caching(*, wce: bool) -> bytes:
    return b"\x08\x12" + bytes([0x04 if wce else 0]) + bytes(17)


def control(*, d_sense: bool = False, swp: bool = False) -> bytes:
    return bytes([0x0A, 0x0A, 0x02 | d_sense << 2, 0x10, swp << 3]) + bytes(7)


# ── MODE SENSE ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ORDER)
def test_each_page(name: str) -> None:
    code, subpage = int(name[:2], 16), int(name[2:] or "0", 16)
    assert sense_6(make_target(make_unit()), code, subpage) == page(name)


@pytest.mark.parametrize(
    ("code", "subpage", "names"),
    [
        (0x3F, 0x00, [name for name in ORDER if len(name) == 2]),
        (0x3F, 0xFF, ORDER),
        (0x0A, 0xFF, ["0a", "0a01"]),
        (0x08, 0xFF, ["08"]),
    ],
)
def test_several_pages(code: int, subpage: int, names: list[str]) -> None:
    assert sense_6(make_target(make_unit()), code, subpage) == page(*names)


def test_all_pages_fit_mode_sense_6() -> None:
    data = good(make_target(make_unit()), "1a003fffff")
    assert data[0] == len(data) - 1 == 3 + 8 + len(page(*ORDER))


def test_page_control() -> None:
    target = make_target(make_unit())
    cdb, data = select_6(caching(wce=False))
    good(target, cdb, data_out=data)
    assert sense_6(target, 0x08) == caching(wce=False)
    assert sense_6(target, 0x08, control=2) == caching(wce=True)
    assert sense_6(target, 0x08, control=1) == caching(wce=True)
    assert sense_6(target, 0x0A, control=1) == bytes.fromhex("0a0a 04 16 08 40" + "00" * 6)
    assert sense_6(target, 0x1C, control=1) == bytes.fromhex("1c0a" + "00" * 10)
    saved = refused(target, bytes([0x1A, 0, 0xC8, 0, 255]))
    assert saved.code == Asc.SAVING_PARAMETERS_NOT_SUPPORTED
    assert saved.pointer == (2, 7)


@pytest.mark.parametrize(
    ("cdb", "byte", "bit"),
    [
        ("1a 08 03 00 ff", 2, 5),
        ("1a 08 00 00 ff", 2, 5),
        ("1a 08 08 01 ff", 3, 7),
        ("1a 08 3f 01 ff", 3, 7),
        ("5a 08 0a 02 000000 00ff", 3, 7),
    ],
)
def test_pages_that_are_not_there(cdb: str, byte: int, bit: int) -> None:
    assert refused(make_target(make_unit()), cdb) == bad_cdb(byte, bit)


def test_header_and_short_block_descriptor() -> None:
    target = make_target(make_unit(block_size=4096))
    assert good(target, "1a 00 08 00 ff")[:12] == bytes.fromhex("1f 00 10 08 00000800 00001000")
    assert good(target, "5a 00 08 00 000000 00ff")[:16] == bytes.fromhex(
        "0022 00 10 00 00 0008 00000800 00001000"
    )


def test_long_block_descriptor() -> None:
    target = make_target(make_unit(size=3 << 40))
    assert good(target, "5a 10 08 00 000000 00ff")[:24] == bytes.fromhex(
        "002a 00 10 01 00 0010 0000000180000000 00000000 00000200"
    )
    # The short one cannot say it.
    assert good(target, "5a 00 08 00 000000 00ff")[8:12] == bytes.fromhex("ffffffff")
    # DBD wins over LLBAA.
    assert good(target, "5a 18 08 00 000000 00ff")[:8] == bytes.fromhex("001a 00 10 00 00 0000")


def test_write_protect_bit() -> None:
    assert good(make_target(make_unit(read_only=True)), "1a 08 08 00 ff")[2] == 0x90


def test_write_through_by_configuration() -> None:
    unit = make_unit(write_cache=False)
    assert not unit.data_plane.policy.write_cache
    assert sense_6(make_target(unit), 0x08, control=2) == caching(wce=False)


# ── MODE SELECT ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("select", [select_6, select_10])
@pytest.mark.normative("scsi.evt.d4")
def test_select_reaches_the_policy_and_tells_the_others(
    select: Callable[[bytes], tuple[bytes, bytes]],
) -> None:
    unit = make_unit()
    target, other = make_target(unit), make_target(unit)
    cdb, data = select(caching(wce=False) + control(d_sense=True, swp=True))
    good(target, cdb, data_out=data)
    policy = unit.data_plane.policy
    assert not policy.write_cache
    assert policy.write_protected
    assert policy.descriptor_sense
    # In descriptor format, which D_SENSE asks of Python's answers too.
    assert send(other, "00").sense == bytes.fromhex("72 06 2a 01 00000000")
    good(other, "00")
    assert target.nexuses[0].pending == ()
    assert good(target, "1a080800ff")[2] == 0x90


def test_selecting_what_is_there_tells_nobody() -> None:
    unit = make_unit()
    target, other = make_target(unit), make_target(unit)
    cdb, data = select_6(page("01", "02", "08", "0a", "0a01", "1a", "1c"))
    good(target, cdb, data_out=data)
    assert other.nexuses[0].pending == ()


@pytest.mark.parametrize(
    ("pages", "waits"),
    [
        (caching(wce=False), True),
        (control(swp=True), True),
        (control(d_sense=True), False),
        (caching(wce=True), False),
    ],
)
def test_what_must_reach_the_medium_first(pages: bytes, waits: bool) -> None:
    steps: list[str] = []

    async def quiesce(lu: _dataplane.Lu) -> None:
        # The policy is in force before it is waited for commands under the old one.
        assert lu.policy.write_protected or not lu.policy.write_cache
        steps.append("quiesce")

    async def flush() -> None:
        steps.append("flush")

    cdb, data = select_6(pages)
    good(make_target(make_unit(flush=flush, quiesce=quiesce)), cdb, data_out=data)
    assert steps == (["quiesce", "flush"] if waits else [])


def test_a_list_of_nothing() -> None:
    good(make_target(make_unit()), "1510000000")
    good(make_target(make_unit()), "55100000000000 0000")
    good(make_target(make_unit()), "1510000004", data_out=bytes(4))


@pytest.mark.parametrize(
    ("pages", "byte", "bit"),
    [
        (b"\x08\x12\x05" + bytes(17), 6, 0),  # RCD
        (b"\x08\x12\x84" + bytes(17), 6, 7),  # IC
        (b"\x08\x12\x04" + bytes(16) + b"\x01", 23, 0),
        (b"\x0a\x0a\x02\x20" + bytes(8), 7, 5),  # QUEUE ALGORITHM MODIFIER 2h
        (b"\x0a\x0a\x02\x14" + bytes(8), 7, 2),  # QERR 10b
        (b"\x0a\x0a\x22\x10" + bytes(8), 6, 5),  # TST
        (b"\x08\x11" + bytes(17), 5, None),  # PAGE LENGTH
        (b"\x03\x16" + bytes(22), 4, 5),  # no such page
        (b"\x4a\x02\x00\x1c" + bytes(28), 4, 5),  # no such subpage
        (b"\x4a\x01\x00\x1d" + bytes(29), 6, None),
        (caching(wce=False) + b"\x3f\x00", 24, 5),
    ],
)
def test_what_cannot_change(pages: bytes, byte: int, bit: int | None) -> None:
    unit = make_unit()
    cdb, data = select_6(pages)
    assert refused(make_target(unit), cdb, data_out=data) == bad_list(byte, bit)
    # All or nothing.
    assert unit.data_plane.policy.write_cache


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        bytes(3),
        bytes(4) + b"\x08",
        bytes(4) + b"\x08\x12" + bytes(17),
        b"\0\0\0\x08" + bytes(7),
    ],
)
def test_a_list_that_ends_too_early(data: bytes) -> None:
    cdb = bytes([0x15, 0x10, 0, 0, len(data)])
    assert refused(make_target(make_unit()), cdb, data_out=data) == SHORT_LIST_ERROR


def test_block_descriptors() -> None:
    unit = make_unit()
    target = make_target(unit)

    def select(descriptor: str, *, long: bool = False) -> tuple[bytes, bytes]:
        raw = bytes.fromhex(descriptor)
        data = bytes([0, 0, 0, 0, long, 0]) + len(raw).to_bytes(2) + raw + caching(wce=True)
        return bytes([0x55, 0x10, 0, 0, 0, 0, 0]) + len(data).to_bytes(2), data

    for right in ("00000800 00000200", "00000000 00000200", "ffffffff 00000200"):
        cdb, data = select(right)
        good(target, cdb, data_out=data)
    cdb, data = select("0000000000000800 00000000 00000200", long=True)
    good(target, cdb, data_out=data)
    for wrong, offset in (("00000801 00000200", 8), ("00000800 00000400", 13), ("00000800", 6)):
        cdb, data = select(wrong)
        assert refused(target, cdb, data_out=data) == bad_list(offset)
    cdb, data = select("0000000000000800 00000000 00000400", long=True)
    assert refused(target, cdb, data_out=data) == bad_list(20)


def test_sp_and_pf() -> None:
    target = make_target(make_unit())
    _, data = select_6(caching(wce=True))
    assert refused(target, bytes([0x15, 0x11, 0, 0, len(data)]), data_out=data) == bad_cdb(1, 0)
    assert refused(target, bytes([0x15, 0x00, 0, 0, len(data)]), data_out=data) == bad_cdb(1, 4)


def test_less_data_than_the_cdb_says_is_the_transports_affair() -> None:
    command = Recorder(bytes([0x15, 0x10, 0, 0, 24, 0]), bytes(23))
    with pytest.raises(DataOutTooShort):
        handle(command, make_target(make_unit()), 0)
    assert command.answers == 0


def test_ps_is_ignored() -> None:
    unit = make_unit()
    cdb, data = select_6(b"\x88" + caching(wce=False)[1:])
    good(make_target(unit), cdb, data_out=data)
    assert not unit.data_plane.policy.write_cache


def test_no_blocks_without_a_medium() -> None:
    target = make_target(make_unit(removable=True))
    good(target, "1b 00 00 00 02")
    assert good(target, "1a 00 08 00 ff")[4:12] == bytes.fromhex("00000000 00000200")
    assert good(target, "5a 10 08 00 000000 00ff")[8:24] == struct.pack(">Q4xI", 0, 512)


# ── Saved pages ────────────────────────────────────────────────────────────────────────────────


def save_6(pages: bytes = b"") -> tuple[bytes, bytes]:
    data = bytes(4) + pages if pages else b""
    return bytes([0x15, 0x11, 0, 0, len(data)]), data


def test_which_pages_can_be_saved() -> None:
    kept, lost = make_target(make_unit(store=MemoryStore())), make_target(make_unit())
    for name in ORDER:
        code, subpage = int(name[:2], 16), int(name[2:] or "0", 16)
        for control in range(3):
            assert not sense_6(lost, code, subpage, control=control)[0] & 0x80
            ps = sense_6(kept, code, subpage, control=control)[0] & 0x80
            assert bool(ps) == (name in ("08", "0a"))


def test_saved_values_are_the_default_ones_until_others_are() -> None:
    store = MemoryStore()
    target = make_target(make_unit(store=store))
    cdb, data = select_6(caching(wce=False))
    good(target, cdb, data_out=data)
    assert sense_6(target, 0x08, control=3)[2] == 0x04
    assert store.sections == {}
    cdb, data = save_6(control(swp=True))
    good(target, cdb, data_out=data)
    # All pages are saved, not only those that were sent.
    assert sense_6(target, 0x08, control=3)[2] == 0
    assert sense_6(target, 0x0A, control=3)[4] == 0x08
    assert sense_6(target, 0x0A, control=2)[4] == 0
    assert sense_6(target, 0x0A)[4] == 0x08


def test_saving_without_sending() -> None:
    target = make_target(make_unit(store=MemoryStore()))
    cdb, data = select_6(caching(wce=False))
    good(target, cdb, data_out=data)
    for empty in ("15 11 00 00 00", "55 11"):
        good(target, empty)
        assert sense_6(target, 0x08, control=3)[2] == 0


@pytest.mark.parametrize("again", ["restart", "reset"])
def test_saved_values_come_back(again: str) -> None:
    store = MemoryStore()
    unit = make_unit(store=store)
    target = make_target(unit)
    cdb, data = save_6(caching(wce=False) + control(d_sense=True))
    good(target, cdb, data_out=data)
    cdb, data = select_6(caching(wce=True) + control(swp=True))
    good(target, cdb, data_out=data)
    if again == "restart":
        unit = make_unit(store=store)
    else:
        unit.reset()
    policy = unit.data_plane.policy
    assert (policy.write_cache, policy.descriptor_sense, policy.write_protected) == (
        False,
        True,
        False,
    )


def test_what_cannot_be_saved_does_not_happen() -> None:
    store = MemoryStore()
    unit = make_unit(store=store)
    store.fail = True
    cdb, data = save_6(caching(wce=False))
    failed = Sense(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
    assert refused(make_target(unit), cdb, data_out=data) == failed
    assert unit.data_plane.policy.write_cache
    assert sense_6(make_target(unit), 0x08, control=3)[2] == 0x04


def test_what_may_not_change_any_more_is_not_taken_from_the_store() -> None:
    store = MemoryStore()
    # RCD and WCE; a page that this version has not.
    store.sections["mode-pages"] = {"0800": "0812 01" + "00" * 17, "3e00": "3e0100"}
    target = make_target(make_unit(store=store))
    assert sense_6(target, 0x08)[:3] == bytes.fromhex("8812 00")


@pytest.mark.parametrize(
    "saved", [[], 5, {"0800": 5}, {"0800": "0812"}, {"0800": "zz"}, {"0800": "0912" + "00" * 18}]
)
def test_damaged_state_is_refused(saved: object) -> None:
    store = MemoryStore()
    store.sections["mode-pages"] = saved
    with pytest.raises(SavedStateError, match="saved mode pages are damaged"):
        make_unit(store=store)
