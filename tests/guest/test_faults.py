"""What Linux says of each kind of fault, and how far its error handler goes.

One guest for all of them, with a kernel (User-Mode Linux) whose driver resets the timer of ordinary
commands for ever: what times out here is the error handler's own REQUEST SENSE, for a CHECK
CONDITION that comes without sense data.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from vscsi_emu.faults.scsi_debug import HOST_BYTES, HostByte
from vscsi_emu.faults.vocabulary import KINDS, KindName
from vscsi_emu.testing import GuestUnavailable, HbaProcess, UmlGuest
from vscsi_emu.testing.faults import InjectedFault, inject, injected

from .shell import Shell

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

READ = "dd if=$dev of=/dev/null iflag=direct bs=4k count=1"
WRITE = "dd if=/dev/zero of=$dev oflag=direct bs=4k count=1"
# Of the disks beside 0:0, which is for faults of single commands.
HANDLED, OFFLINED = "/dev/sdb", "/dev/sdc"
HANDLER_SECONDS = 60.0
TIMEOUT_OF_A_SECOND = "echo 1 >/sys/block/${dev##*/}/device/timeout"
# Linux says each thing ten times within five seconds, then it holds back (DEFAULT_RATELIMIT_BURST).
RATELIMIT_SECONDS = 5.5


@dataclass(frozen=True)
class Server:
    hba: HbaProcess
    guest: Shell

    def dmesg(self, command: str) -> tuple[str, int]:
        """What the kernel says of `command`, and how that ends."""
        script = f"dmesg --clear; ({command}) >/dev/null 2>&1; code=$?; dmesg; (exit $code)"
        ran = self.guest.run(script, HANDLER_SECONDS)
        return ran.output, ran.exit_code

    def functions(self, lun: str) -> list[tuple[str, str]]:
        """Task management that came for a unit, and how it was answered."""
        log = self.hba.control.tmf_log()
        return [(tmf.function, tmf.response) for tmf in log if tmf.lun == lun]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    try:
        UmlGuest().require()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    with HbaProcess(["mem:16M", "mem:16M", "mem:16M"], monitor=True) as hba:
        guest = Shell(hba.socket)
        try:
            guest.ready()
            for name, source in (("old", "zero"), ("new", "urandom")):
                guest.run(f"dd if=/dev/{source} of={name} bs=64k count=1").check()
            yield Server(hba, guest)
        finally:
            guest.close()


@dataclass(frozen=True)
class Case:
    """A command under a fault: what the kernel says besides `Kind.linux`, and whether it fails."""

    kind: KindName
    command: str
    says: tuple[str, ...] = ()
    fails: bool = True
    fields: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.kind


def case(kind: KindName, command: str, *says: str, fails: bool = True, **fields: Any) -> Case:
    return Case(kind, command, says, fails, tuple(fields.items()))


def sense(key: int, asc: int, ascq: int) -> tuple[str, str]:
    return f"Sense Key : {key:#x} ", f"ASC={asc:#x} ASCQ={ascq:#x} "


CASES = [
    case("answer", READ, "critical target error", *sense(5, 0x26, 1), key=5, code=0x2601),
    case("medium-error", READ, "sector 2 op 0x0:(READ)", *sense(3, 0x11, 0), lba=2),
    case("write-error", WRITE, "sector 2 op 0x1:(WRITE)", *sense(3, 0xC, 0), lba=2),
    case("recovered-error", READ, *sense(1, 0x5D, 0), fails=False),
    case("hardware-error", READ, *sense(4, 0x44, 0)),
    case("not-ready", READ, *sense(2, 4, 3)),
    case("transport-error", READ, *sense(0xB, 0x4B, 3), opcodes=["READ"]),
    case("dif-error", READ, *sense(0xB, 0x10, 1)),
    case("dix-error", READ, *sense(5, 0x10, 1)),
    case("unaligned-write", WRITE, *sense(5, 0x21, 4)),
    case("disk-full", WRITE, *sense(7, 0x27, 7)),
    case(
        "wear-out",
        f"{WRITE}; {WRITE}",
        *sense(1, 0xC, 1),
        *sense(3, 0xC, 2),
        writes=0,
        spares=1,
    ),
    case("unit-attention", READ, fails=False),
    case("reservation-conflict", WRITE, "critical nexus error"),
    case("busy", READ, fails=False, times=3, opcodes=["READ"]),
    case("task-set-full", READ, fails=False, times=3, opcodes=["READ"]),
    case("host-busy", READ, "hostbyte=0x02", opcodes=["READ"]),
    case("command-abort", READ, "hostbyte=0x05", opcodes=["READ"]),
    case("delay", READ, fails=False, seconds=0.3),
    case("short-transfer", READ, fails=False),
    case("tmf-failure", "sg_reset -d $sg", "device reset", function="LOGICAL_UNIT_RESET"),
    case("link-down", READ, "hostbyte=0x04"),
]
BY_ITS_DATA = {"bit-flip", "torn-write", "lost-write", "misdirected-write"}
BY_THE_ERROR_HANDLER = {"hang", "lost-completion"}


def test_every_kind_is_seen() -> None:
    assert {case.kind for case in CASES} | BY_ITS_DATA | BY_THE_ERROR_HANDLER == set(KINDS)
    assert set(KINDS) == set(get_args(KindName))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_the_kernel_says(server: Server, case: Case) -> None:
    wanted = (KINDS[case.kind].linux, *case.says)
    for pause in (RATELIMIT_SECONDS, 0.0):
        with injected(server.hba, "0:0", case.kind, **dict(case.fields)) as fault:
            text, code = server.dmesg(case.command)
            hits = fault.hits
        if all(expected in text for expected in wanted):
            break
        time.sleep(pause)
    for expected in wanted:
        assert expected in text
    assert (code != 0) is case.fails
    assert hits > 0 or case.kind == "link-down"
    # It is over: what the fault left pending is reported, and then all is well.
    text, code = server.dmesg(READ)
    assert code == 0
    assert "error" not in text


def test_a_unit_attention_of_choice(server: Server) -> None:
    with injected(server.hba, "0:0", "unit-attention", code=0x2A09):
        text, code = server.dmesg(READ)
    assert "Capacity data has changed" in text
    assert code == 0


def test_retries_that_succeed_are_silent(server: Server) -> None:
    for kind in ("busy", "transport-error", "host-busy", "task-set-full"):
        with injected(server.hba, "0:0", kind, opcodes=["READ"], times=2) as fault:
            text, code = server.dmesg(READ)
            assert (text.strip(), code, fault.hits) == ("", 0, 2)


@pytest.mark.parametrize("kind", ["bit-flip", "torn-write", "lost-write", "misdirected-write"])
def test_corruption_is_silent_and_a_checksum_finds_it(server: Server, kind: KindName) -> None:
    store = "dd if={} of=$dev oflag=direct bs=64k"
    check = "dd if=$dev iflag=direct bs=64k count=1 2>/dev/null | cmp - {}"
    assert server.dmesg(store.format("old"))[1] == 0
    with injected(server.hba, "0:0", kind, opcodes=["WRITE"], seed=1) as fault:
        assert server.dmesg(store.format("new")) == ("", 0)
        assert fault.hits == 1
    assert server.dmesg(check.format("new"))[1] == 1
    untouched = kind in ("lost-write", "misdirected-write")
    assert (server.dmesg(check.format("old"))[1] == 0) is untouched


REPORTED = {
    "DID_NO_CONNECT": "hostbyte=0x04",
    "DID_TARGET_FAILURE": "hostbyte=0x04",
    "DID_NEXUS_FAILURE": "reservation conflict",
}
"""Where it is not the same host byte."""
RETRIED_FOR_EVER = ("DID_OK", "DID_RESET")
FAILING = [each for each in HOST_BYTES if each.response and each.name not in RETRIED_FOR_EVER]


@pytest.mark.parametrize("each", FAILING, ids=lambda each: each.name)
def test_linux_reports_the_host_bytes_that_scsi_debug_knows(server: Server, each: HostByte) -> None:
    """docs/faults.md says how."""
    wanted = REPORTED.get(each.name, f"hostbyte={each.value:#04x}")
    line = f"2 1 28 {each.value:x} 0 0 0 0 0"
    for pause in (RATELIMIT_SECONDS, 0.0):
        [state] = server.hba.control.fault_scsi_debug("0:0", error=line)
        text, code = server.dmesg(READ)
        assert server.hba.control.fault_remove(state.id).hits > 0
        if wanted in text:
            break
        time.sleep(pause)
    assert wanted in text
    assert code != 0


def test_linux_tries_again_after_somebody_else_s_reset(server: Server) -> None:
    [state] = server.hba.control.fault_scsi_debug("0:0", error="2 -9 28 8 0 0 0 0 0")
    text, code = server.dmesg(READ)
    assert (text.strip(), code) == ("", 0)
    assert server.hba.control.fault_remove(state.id).hits == 9


# ── The error handler ──────────────────────────────────────────────────────────────────────────


def awaken(
    server: Server, lun: str, *hangs: str, kind: KindName = "hang", seconds: int = 3
) -> list[InjectedFault]:
    """Faults that wake the error handler with the next READ, and let it wait for these commands,
    so long each: what it sends afterwards must be answered in that time, however busy the host."""
    server.guest.run(f"echo {seconds} >/sys/bus/scsi/devices/0:0:{lun}/eh_timeout").check()
    return [
        inject(server.hba, lun, "answer", status=2, opcodes=["READ"], times=1),
        inject(server.hba, lun, kind, opcodes=list(hangs)),
    ]


def order(text: str, *said: str) -> None:
    """The kernel said these things, in this order."""
    assert re.search(".*".join(map(re.escape, said)), text, re.DOTALL), text


@pytest.mark.parametrize("kind", ["hang", "lost-completion"])
def test_an_abort_is_enough(server: Server, kind: KindName) -> None:
    before = len(server.functions("1:0"))
    faults = awaken(server, "1:0", "REQUEST SENSE", kind=kind)
    text, code = server.dmesg(READ.replace("$dev", HANDLED))
    for fault in faults:
        assert fault.hits == 1
        fault.remove()
    assert code == 0
    order(text, "abort")
    assert server.functions("1:0")[before:][0] == ("ABORT_TASK", "OK")


def test_a_failed_abort_is_followed_by_a_reset_of_the_unit(server: Server) -> None:
    before = len(server.functions("1:0"))
    faults = awaken(server, "1:0", "REQUEST SENSE")
    faults.append(inject(server.hba, "1:0", "tmf-failure", function="ABORT_TASK"))
    text, code = server.dmesg(READ.replace("$dev", HANDLED))
    for fault in faults:
        assert fault.hits == 1
        fault.remove()
    assert code == 0, "the reset has ended what hung, and the READ was tried again"
    order(text, "abort", "device reset", "Power-on or device reset occurred")
    assert server.functions("1:0")[before:][:2] == [
        ("ABORT_TASK", "FAILURE"),
        ("LOGICAL_UNIT_RESET", "OK"),
    ]


def test_an_ordinary_command_outlives_its_timeout(server: Server) -> None:
    """Linux's driver starts its timer anew: no abort, no reset, as long as the fault lasts."""
    before = server.functions("0:0")
    with injected(server.hba, "0:0", "hang", opcodes=["READ"]) as fault:
        server.guest.run(f"{TIMEOUT_OF_A_SECOND}; ({READ}; echo $? >ended) >/dev/null 2>&1 &")
        waited = server.guest.run(
            "until [ -e ended ] || [ $((n += 1)) -gt 30 ]; do sleep 0.1; done"
        )
        assert waited.exit_code == 0
        assert fault.hits == 1
        assert server.guest.run("[ -e ended ]").exit_code == 1, "it still waits"
        assert server.functions("0:0") == before
        fault.release()
        ended = server.guest.run("until [ -s ended ]; do sleep 0.1; done; cat ended; rm ended")
        assert ended.check().strip() == "0"


def test_a_command_that_is_always_busy_is_given_up(server: Server) -> None:
    with injected(server.hba, "0:0", "busy", opcodes=["READ"]) as fault:
        text, code = server.dmesg(f"{TIMEOUT_OF_A_SECOND}; {READ}")
        assert fault.hits > 1
    order(text, "timing out command, waited 6s", "I/O error")
    assert code != 0


def test_when_nothing_helps_the_device_is_offline(server: Server) -> None:
    """Linux's driver has no reset of a target, a bus or a host: after the unit's it gives up."""
    before = len(server.functions("2:0"))
    faults = awaken(server, "2:0", "REQUEST SENSE", "TEST UNIT READY", seconds=1)
    faults.append(inject(server.hba, "2:0", "tmf-failure"))
    text, code = server.dmesg(READ.replace("$dev", OFFLINED))
    assert code != 0
    order(text, "abort", "device reset", "Device offlined - not ready after error recovery")
    seen = server.functions("2:0")[before:]
    assert [function for function, _ in seen][:2] == ["ABORT_TASK", "LOGICAL_UNIT_RESET"]
    assert len(seen) > 2
    assert {response for _, response in seen} == {"FAILURE"}
    for fault in faults:
        fault.remove()
    state = "/sys/bus/scsi/devices/0:0:2:0/state"
    assert server.guest.run(f"cat {state}; echo running >{state}").check().strip() == "offline"
    text, code = server.dmesg(READ.replace("$dev", OFFLINED))
    assert code == 0


def test_there_is_no_deadline_without_a_reset_of_the_host(server: Server) -> None:
    """Linux refuses it to drivers that have none."""
    result = server.guest.run("echo 1 >/sys/class/scsi_host/host0/eh_deadline")
    assert result.exit_code != 0
    assert "Invalid argument" in result.output


# ── A target that is gone, and back ────────────────────────────────────────────────────────────


def test_linux_takes_a_lost_disk_away_and_gives_it_back(server: Server) -> None:
    at = "/sys/bus/scsi/devices/0:0:1:0"
    gone = f"until [ ! -e {at} ]; do sleep 0.1; done"
    back = "until dmesg | grep -q 'Attached SCSI disk'; do sleep 0.1; done"
    server.guest.run("dmesg --clear").check()
    with injected(server.hba, "1:0", "link-down", dev_loss=0.0):
        text = server.guest.run(f"{gone}; dmesg").check()
        order(text, "Synchronizing SCSI cache", "Synchronize Cache(10) failed", "hostbyte=0x04")
        server.guest.run("dmesg --clear").check()
    text = server.guest.run(f"{back}; dmesg").check()
    order(text, "Direct-Access", "Attached SCSI disk")
    assert server.dmesg(READ.replace("$dev", f"/dev/$(ls {at}/block)"))[1] == 0


def test_linux_keeps_a_disk_whose_link_is_down_for_a_moment(server: Server) -> None:
    at = "/sys/bus/scsi/devices/0:0:1:0"
    with injected(server.hba, "1:0", "link-down", dev_loss=3600.0):
        text, code = server.dmesg(READ.replace("$dev", f"/dev/$(ls {at}/block)"))
        assert (code != 0, "hostbyte=0x04" in text) == (True, True)
    text, code = server.dmesg(READ.replace("$dev", f"/dev/$(ls {at}/block)"))
    assert code == 0
    assert "Attached SCSI disk" not in text
