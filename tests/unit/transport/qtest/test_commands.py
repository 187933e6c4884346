"""qtest commands and their replies, as QEMU 7.2 gives them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.transport.qtest.machine import BASE, RAM, Machine
from vscsi_emu.transport.qtest.commands import MAX_TRANSFER


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize(
    ("suffix", "digits"), [("b", "08"), ("w", "0708"), ("l", "05060708"), ("q", "0102030405060708")]
)
def test_values_are_little_endian(machine: Machine, suffix: str, digits: str) -> None:
    assert machine(f"write{suffix} 0x1000 0x0102030405060708") == "OK"
    value = int(digits, 16)
    assert machine(f"read{suffix} 4096") == f"OK 0x{value:016x}"
    assert machine.memory.read(0x1000, 9) == value.to_bytes(9, "little")


def test_blocks(machine: Machine) -> None:
    assert machine("write 0x2000 0x4 0x01020304") == "OK"
    assert machine("read 0x2000 0x5") == "OK 0x0102030400"
    assert machine("b64read 0x2000 4") == "OK AQIDBA=="
    assert machine("b64write 0x2001 2 //8=") == "OK"
    assert machine("read 0x2000 4") == "OK 0x01ffff04"
    assert machine("memset 0x2000 3 0x1aa") == "OK"
    assert machine("read 0x2000 4") == "OK 0xaaaaaa04"
    assert machine("b64read 0x2000 0") == "OK"
    assert machine("memset 0x2000 0 1") == "OK"


def test_missing_data_are_zeros(machine: Machine) -> None:
    machine("memset 0x1000 4 0xff")
    assert machine("write 0x1000 0x4 0x0102") == "OK"
    assert machine("readl 0x1000") == "OK 0x0000000000000201"


def test_numbers_are_those_of_strtoull(machine: Machine) -> None:
    machine("writeb 0x10 0x7f")
    assert machine("readb 020") == machine("readb 16") == machine("readb 0X10")
    assert machine("readb 020") == "OK 0x000000000000007f"


@pytest.mark.parametrize("suffix", "bwlq")
def test_nothing_reads_as_zeros(machine: Machine, suffix: str) -> None:
    assert machine(f"write{suffix} 0xd0000000 0x1") == "OK"
    assert machine(f"read{suffix} 0xd0000000") == "OK 0x0000000000000000"


def test_blocks_over_the_end_of_memory(machine: Machine) -> None:
    assert machine(f"write {RAM - 2} 4 0x01020304") == "OK"
    assert machine(f"read {RAM - 3} 6") == "OK 0x000102000000"
    assert machine(f"read {(1 << 64) - 2:#x} 4") == "OK 0x00000000"


@pytest.mark.parametrize(
    ("command", "accesses"),
    [
        ("readl {0:#x}", [("read", 0, 4, 0)]),
        ("readb {3:#x}", [("read", 3, 1, 0)]),
        ("readl {2:#x}", [("read", 2, 2, 0), ("read", 4, 2, 0)]),
        ("readl {1:#x}", [("read", 1, 1, 0), ("read", 2, 2, 0), ("read", 4, 1, 0)]),
        (
            "writeq {8:#x} 0x1122334455667788",
            [("write", 8, 4, 0x55667788), ("write", 12, 4, 0x11223344)],
        ),
        ("write {8:#x} 3 0xaabbcc", [("write", 8, 2, 0xBBAA), ("write", 10, 1, 0xCC)]),
        ("read {510:#x} 8", [("read", 510, 2, 0)]),
    ],
)
def test_registers_get_aligned_accesses(
    machine: Machine, command: str, accesses: list[tuple[str, int, int, int]]
) -> None:
    offset = int(command[command.index("{") + 1 : command.index(":")])
    line = command.replace(command[command.index("{") : command.index("}") + 1], hex(BASE + offset))
    assert machine(line).startswith("OK")
    assert machine.registers.log == accesses


def test_a_block_over_registers_and_what_is_beside(machine: Machine) -> None:
    assert machine(f"read {BASE - 2:#x} 4") == "OK 0x00000001"


def test_clock(machine: Machine) -> None:
    assert machine("clock_step 100") == "OK 100"
    assert machine("clock_step") == "OK 100"
    assert machine("clock_set 250") == "OK 250"
    assert machine("clock_set 7") == "OK 250"


def test_endianness(machine: Machine) -> None:
    assert machine("endianness") == "OK little"


@pytest.mark.parametrize(
    "line",
    ["endianness now", "readb 0 1 2", "clock_step 5 6", "memset 0 1 2 3", "write 0 1 0x00 4"],
)
def test_arguments_too_many_are_ignored(machine: Machine, line: str) -> None:
    assert machine(line).startswith("OK")


def test_interception(machine: Machine) -> None:
    assert not machine.commands.intercepting
    assert machine("irq_intercept_in ioapic") == "OK"
    assert machine.commands.intercepting
    assert machine("irq_intercept_in ioapic") == "OK"
    assert machine("irq_intercept_in gic") == "FAIL IRQ intercept already enabled"
    machine.commands.connected()
    assert not machine.commands.intercepting


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "Unknown command ''"),
        ("bogus", "Unknown command 'bogus'"),
        ("\x1b[2J 1", "Unknown command '?[2J'"),
        ("x" * 1000, "Unknown command '" + "x" * 40 + "'"),
        ("readb", "readb takes 1 arguments, not 0"),
        ("writeb 0x0", "writeb takes 2 arguments, not 1"),
        ("readb zero", "'zero' is not a number"),
        ("readb -1", "'-1' is not a number"),
        ("readb 09", "'09' is not an octal number"),
        ("readb 0x10000000000000000", "0x10000000000000000 has more than 64 bits"),
        ("readb " + "9" * 5000, f"'{'9' * 40}' is not a number"),
        ("readb 0x", "'0x' is not a number"),
        ("readb  0x10", "'' is not a number"),
        ("read 0 0", "read of 0 bytes has no answer"),
        ("read 0 0x1000001", f"16777217 bytes; a command moves at most {MAX_TRANSFER}"),
        ("memset 0 0xffffffffffffffff 0", f"{(1 << 64) - 1} bytes; a command moves at most"),
        ("write 0 1 aa", "data begin with 0x"),
        ("write 0 1 0xa", "data are hexadecimal digits, two a byte"),
        ("write 0 1 0xzz", "data are hexadecimal digits, two a byte"),
        ("b64write 0 1 ****", "data are not base64"),
        ("b64write 0 8 AQID", "8 bytes announced, 3 given"),
        ("clock_step -5", "'-5' is not a number"),
        ("irq_intercept_in x y", "Interception of named in-GPIOs not yet supported"),
    ],
)
def test_what_cannot_be_done_fails(machine: Machine, line: str, reason: str) -> None:
    assert machine(line).startswith(f"FAIL {reason}")
    assert not machine.registers.log


_NAMES = "readb readq writew writel read write b64read b64write memset irq_intercept_in clock_step"
_WORDS = st.sampled_from(
    [
        *_NAMES.split(),
        *["endianness", "0", "0x10", "4", "0xff", "AQID", "0xaabb", "-1", "00"],
        *(hex(address) for address in (BASE, BASE + 0x1FF, (1 << 64) - 1)),
        "",
    ]
) | st.text(max_size=8)


@given(st.lists(_WORDS, max_size=5).map(" ".join))
def test_any_line_is_answered_by_one_line(line: str) -> None:
    reply = Machine()(line)
    assert reply.startswith(("OK", "FAIL "))
    assert reply.isascii()
    assert "\n" not in reply
