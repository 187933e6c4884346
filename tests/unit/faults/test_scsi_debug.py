"""What scsi_debug takes, as faults."""

from __future__ import annotations

from typing import Any

import pytest

from vscsi_emu.driver.host_byte import host_byte
from vscsi_emu.faults import Fault, FaultError
from vscsi_emu.faults.scsi_debug import HOST_BYTES, OPTS, Line, from_delay, from_error, from_opts
from vscsi_emu.faults.vocabulary import opcodes_of
from vscsi_emu.virtio.scsi import Response


def test_every_bit_has_a_row_of_its_own() -> None:
    assert [opt.bit for opt in OPTS] == [1 << n for n in range(18)]


def test_the_bits_of_opts() -> None:
    [error] = from_opts(0x2, 5)
    assert (error.kind, error.lba, error.blocks, error.every) == ("medium-error", 0x1234, 10, 1)
    assert from_opts(0x4 | 0x8, 3) == [
        Fault(kind="hang", nth=3, every=3),
        Fault(kind="recovered-error", nth=3, every=3),
    ]
    assert from_opts(0x8000, -3) == [Fault(kind="host-busy", nth=3)]
    assert from_opts(0x1 | 0x200 | 0x2000 | 0x4000) == []


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("0 -10 0x12", {"kind": "hang", "opcodes": [0x12], "times": 10}),
        ("0 1 ff", {"kind": "hang", "opcodes": []}),
        ("1 -2 28 0x1055", {"kind": "host-busy", "opcodes": [0x28], "times": 2}),
        ("1 -2 28 0x1056", {"kind": "busy", "opcodes": [0x28], "times": 2}),
        ("1 1 28 1058", {"kind": "busy", "opcodes": [0x28]}),
        ("1 1 28 7", {"kind": "host-busy", "opcodes": [0x28]}),
        (
            "2 -10 0x88 0 0 0x2 0x3 0x11 0x0",
            {
                "kind": "answer",
                "opcodes": [0x88],
                "times": 10,
                "response": 0,
                "status": 2,
                "key": 3,
                "code": 0x1100,
            },
        ),
        (
            "2 1 ff e 0 0 0 0 0",
            {
                "kind": "answer",
                "opcodes": [],
                "response": Response.TRANSPORT_FAILURE,
                "status": 0,
            },
        ),
        ("3 -1 ff", {"kind": "tmf-failure", "function": "ABORT_TASK", "times": 1, "opcodes": []}),
        ("3 1 28", {"kind": "tmf-failure", "function": "ABORT_TASK", "opcodes": [0x28]}),
        ("4 1 0xff", {"kind": "tmf-failure", "function": "LOGICAL_UNIT_RESET"}),
    ],
)
def test_lines_of_the_error_file(line: str, wanted: dict[str, Any]) -> None:
    found = from_error(line)
    assert found.fault == Fault(**wanted)
    assert not found.ends


@pytest.mark.parametrize("line", ["0 0 0x12", "1 1 0x12 0"])
def test_a_count_of_0_and_a_success_are_no_fault(line: str) -> None:
    assert from_error(line) == Line(int(line[0]), 0x12, None)


def test_a_line_names_the_rule_that_it_is_for() -> None:
    assert from_error("- 2 28") == Line(2, 0x28, None, ends=True)
    keys = {from_error(line).key for line in ("2 1 28 0 0 8 0 0 0", "2 -3 0x28 0 0 2 3 0 0")}
    assert keys == {(2, 0x28)}


def test_every_host_byte_has_a_response_or_a_reason() -> None:
    assert [each.value for each in HOST_BYTES] == list(range(0x15))
    for each in HOST_BYTES:
        line = f"2 1 ff {each.value:x} 0 0 0 0 0"
        if each.response is None:
            with pytest.raises(FaultError, match=f"{each.name}: {each.note}"):
                from_error(line)
            continue
        assert from_error(line).fault == Fault(
            kind="answer", opcodes=[], response=each.response, status=0
        )
        if each.name != "DID_NO_CONNECT":
            assert host_byte(each.response) == each.value


def test_delays() -> None:
    assert from_delay(0) == []
    assert from_delay(1_000_000) == [Fault(kind="delay", seconds=0.001)]
    uniform = Fault(kind="delay", distribution="uniform", seconds=0.0, spread=0.001)
    assert from_delay(1_000_000, random=True) == [uniform]
    with pytest.raises(FaultError, match="ndelay"):
        from_delay(1_000_000_000)


def test_what_comes_first_there_comes_first_here() -> None:
    kinds = [fault.kind for fault in from_opts(0x8 | 0x10 | 0x20 | 0x8000)]
    assert kinds == ["host-busy", "recovered-error", "dif-error", "transport-error"]


def test_medium_errors_need_no_counting() -> None:
    [fault] = from_opts(0x2, 0, (7, 3))
    assert (fault.lba, fault.blocks) == (7, 3)
    with pytest.raises(FaultError, match="MEDIUM_ERR alone"):
        from_opts(0x6, 0)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", "is no TYPE COUNT OPCODE"),
        ("9 1 ff", "TYPE 0 to 4"),
        ("0 1 zz", "is no TYPE COUNT OPCODE"),
        ("0 1 12 4", "timeout takes no more"),
        ("2 1 12 0", "fail command takes host byte, driver byte"),
        ("2 1 12 3 0 0 0 0 0", "no virtio response means host byte 0x3, DID_TIME_OUT: write a li"),
        ("2 1 12 15 0 0 0 0 0", "Linux has no host byte 0x15"),
        ("- 2", "is no - TYPE OPCODE"),
        ("- 7 12", "is no - TYPE OPCODE"),
        ("2 1 12 0 6 0 0 0 0", "driver byte"),
        ("4 1 28", "is for no one command"),
        ("0 1 123", "opcodes: 291 is not within"),
    ],
)
def test_lines_that_mean_nothing(line: str, text: str) -> None:
    with pytest.raises(FaultError, match=text):
        from_error(line)


@pytest.mark.parametrize(("opts", "every"), [(1 << 18, 1), (-1, 1), (4, 0)])
def test_options_that_mean_nothing(opts: int, every: int) -> None:
    with pytest.raises(FaultError):
        from_opts(opts, every)


def test_families_of_commands() -> None:
    assert opcodes_of(Fault(kind="busy", opcodes=["READ"])) == {0x08, 0x28, 0x88, 0xA8, 0x7F0009}
    assert opcodes_of(Fault(kind="busy", opcodes=["0x12", 0, "WRITE(10)"])) == {0x00, 0x12, 0x2A}
    assert opcodes_of(Fault(kind="busy")) == set()
