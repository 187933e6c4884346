"""A cluster of two nodes: two kernels on two sockets of one server, and the disk that they share.

Each test begins with no registration and no unit attention condition.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vscsi_emu.testing import GuestUnavailable, HbaProcess, UmlGuest

from .report import Section
from .served import Served
from .shell import Shell

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

# Exit codes of sg3_utils: SG_LIB_CAT_UNIT_ATTENTION, _ILLEGAL_REQ, _RES_CONFLICT.
GOOD, ILLEGAL_REQUEST, UNIT_ATTENTION, CONFLICT = 0, 5, 6, 24

WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS = 1, 3
WRITE_EXCLUSIVE_RO, EXCLUSIVE_ACCESS_RO = 5, 6
WRITE_EXCLUSIVE_AR, EXCLUSIVE_ACCESS_AR = 7, 8

IO = {
    "read": "dd if=$dev of=/dev/null bs=4k count=1 iflag=direct",
    "write": "dd if=/dev/zero of=$dev bs=4k count=1 oflag=direct",
}
READS, ALL, NOTHING = {"read"}, set(IO), set[str]()

HBAS = """
[[hba]]
socket = "a.sock"
initiator = "3000000000000001"
luns = {"0:0" = "shared"}
[[hba]]
socket = "b.sock"
initiator = "3000000000000002"
luns = {"0:0" = "shared"}
"""
SHARED = '[[lun]]\nid = "shared"\n'


class Node:
    """A guest of the cluster, by what its administrator types."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.boot()

    def boot(self) -> None:
        self.shell = Shell(self._socket)

    def run(self, command: str) -> Section:
        return self.shell.run(command)

    def pr(self, action: str, *, key: int = 0, sark: int = 0, kind: int = 0, more: str = "") -> int:
        """PERSISTENT RESERVE OUT; the exit code."""
        return self.run(
            f"sg_persist --no-inquiry --out --{action} --param-rk={key:x} --param-sark={sark:x} "
            f"--prout-type={kind} {more} $sg"
        ).exit_code

    def register(self, key: int) -> int:
        return self.pr("register", sark=key)

    @property
    def keys(self) -> list[int]:
        output = self.run("sg_persist --no-inquiry --in --read-keys $sg").check()
        return sorted(int(line, 16) for line in output.split() if line.startswith("0x"))

    @property
    def reservation(self) -> str:
        return self.run("sg_persist --no-inquiry --in --read-reservation $sg").check()

    @property
    def access(self) -> set[str]:
        """Which of `IO` the kernel gets done; a reservation is why it is refused the others."""
        tries = "; ".join(f"{command} && echo may-{name}" for name, command in IO.items())
        output = self.run(f"dmesg --clear; {tries}; dmesg").output
        done = {name for name in IO if f"may-{name}\n" in output}
        refused = len(IO) - len(done)
        assert output.count("Invalid exchange") == refused, output  # EBADE, as Linux says it
        assert output.count("reservation conflict") == refused, output
        return done

    @property
    def attention(self) -> str:
        """The unit attention condition that TEST UNIT READY reports; empty for none."""
        done = self.run("sg_turs --verbose $sg")
        assert done.exit_code in (GOOD, UNIT_ATTENTION), done.output
        return done.output if done.exit_code else ""


@contextmanager
def booted(*sockets: Path) -> Iterator[list[Node]]:
    """Nodes on `sockets`, which boot side by side."""
    nodes = [Node(socket) for socket in sockets]
    try:
        for node in nodes:
            node.shell.ready()
        yield nodes
    finally:
        for node in nodes:
            node.shell.close()


@pytest.fixture(scope="module", autouse=True)
def _user_mode_linux() -> None:
    try:
        UmlGuest().require()
    except GuestUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served(f'{SHARED}uri = "mem:64M"\n{HBAS}') as served:
        yield served


@pytest.fixture(scope="module")
def cluster(server: Served) -> Iterator[list[Node]]:
    with booted(*server.sockets) as nodes:
        yield nodes


@pytest.fixture
def a(cluster: list[Node]) -> Node:
    node, other = cluster
    ready = "until sg_turs $sg; do :; done"
    pr_out = "sg_persist --no-inquiry --out"
    node.run(
        f"{ready} && {pr_out} --register-ignore --param-sark=f $sg "
        f"&& {pr_out} --clear --param-rk=f $sg"
    ).check()
    other.run(ready)
    return node


@pytest.fixture
def b(a: Node, cluster: list[Node]) -> Node:
    return cluster[1]


@pytest.mark.parametrize(
    ("kind", "unregistered_may", "registered_may"),
    [
        (WRITE_EXCLUSIVE, READS, READS),
        (EXCLUSIVE_ACCESS, NOTHING, NOTHING),
        (WRITE_EXCLUSIVE_RO, READS, ALL),
        (EXCLUSIVE_ACCESS_RO, NOTHING, ALL),
        (WRITE_EXCLUSIVE_AR, READS, ALL),
        (EXCLUSIVE_ACCESS_AR, NOTHING, ALL),
    ],
)
def test_each_type_keeps_out_whom_it_must(
    a: Node, b: Node, kind: int, unregistered_may: set[str], registered_may: set[str]
) -> None:
    assert a.register(0xA) == GOOD
    assert a.pr("reserve", key=0xA, kind=kind) == GOOD
    assert a.access == ALL
    assert b.access == unregistered_may
    assert b.register(0xB) == GOOD
    assert b.access == registered_may
    # Every registrant holds an all registrants reservation, so its own RESERVE changes nothing.
    everyone = kind in (WRITE_EXCLUSIVE_AR, EXCLUSIVE_ACCESS_AR)
    assert b.pr("reserve", key=0xB, kind=kind) == (GOOD if everyone else CONFLICT)


def test_only_the_registered_with_their_key_may_reserve(a: Node, b: Node) -> None:
    assert b.pr("reserve", key=0xB, kind=WRITE_EXCLUSIVE) == CONFLICT
    assert a.register(0xA) == GOOD
    assert a.pr("reserve", key=0xB, kind=WRITE_EXCLUSIVE) == CONFLICT
    assert "NO reservation held" in a.reservation


def test_a_key_changes(a: Node, b: Node) -> None:
    assert a.register(0xA) == GOOD
    assert b.register(0xB) == GOOD
    assert a.pr("reserve", key=0xA, kind=EXCLUSIVE_ACCESS) == GOOD
    assert a.pr("register", key=0xBAD, sark=0xAA) == CONFLICT
    assert a.pr("register", key=0xA, sark=0xAA) == GOOD
    assert b.keys == [0xB, 0xAA]
    assert "Key=0xaa" in b.reservation
    assert a.pr("release", key=0xA, kind=EXCLUSIVE_ACCESS) == CONFLICT
    assert b.access == NOTHING
    assert a.pr("release", key=0xAA, kind=EXCLUSIVE_ACCESS) == GOOD
    assert b.access == ALL


def test_a_release_tells_those_that_shared(a: Node, b: Node) -> None:
    assert a.register(0xA) == GOOD
    assert b.register(0xB) == GOOD
    assert a.pr("reserve", key=0xA, kind=WRITE_EXCLUSIVE_RO) == GOOD
    assert b.pr("release", key=0xB, kind=WRITE_EXCLUSIVE_RO) == GOOD
    assert "Key=0xa" in b.reservation, "only the holder's release counts"
    assert a.pr("release", key=0xA, kind=EXCLUSIVE_ACCESS) == ILLEGAL_REQUEST
    assert b.attention == ""
    assert a.pr("release", key=0xA, kind=WRITE_EXCLUSIVE_RO) == GOOD
    assert "Reservations released" in b.attention
    assert b.attention == a.attention == ""
    assert "NO reservation held" in b.reservation
    assert b.keys == [0xA, 0xB]


def test_clear_ends_everything(a: Node, b: Node) -> None:
    assert a.register(0xA) == GOOD
    assert b.register(0xB) == GOOD
    assert a.pr("reserve", key=0xA, kind=EXCLUSIVE_ACCESS) == GOOD
    assert b.pr("clear", key=0xB) == GOOD
    assert "Reservations preempted" in a.attention
    assert a.keys == b.keys == []
    assert "NO reservation held" in a.reservation
    assert b.access == ALL


def test_preempt_takes_the_reservation_over(a: Node, b: Node) -> None:
    assert a.register(0xA) == GOOD
    assert b.register(0xB) == GOOD
    assert b.pr("reserve", key=0xB, kind=WRITE_EXCLUSIVE) == GOOD
    assert a.pr("preempt", key=0xA, sark=0xB, kind=EXCLUSIVE_ACCESS) == GOOD
    assert "Registrations preempted" in b.attention
    assert a.keys == [0xA]
    assert "Exclusive Access" in a.reservation
    assert b.pr("release", key=0xB, kind=WRITE_EXCLUSIVE) == CONFLICT
    assert b.access == NOTHING
    assert a.access == ALL


def test_preempt_and_abort_fences_a_node_that_writes(a: Node, b: Node) -> None:
    """As fence_scsi does: write exclusive, registrants only, and the lost node's key preempted."""
    last = "bs=4k skip=1023 count=1 iflag=direct"
    assert a.register(0xA) == GOOD
    assert b.register(0xB) == GOOD
    assert a.pr("reserve", key=0xA, kind=WRITE_EXCLUSIVE_RO) == GOOD
    a.run("dd if=/dev/zero of=$dev bs=1M count=4 oflag=direct").check()
    b.shell.ask(
        "fio --name=load --filename=$dev --rw=write --bs=4k --size=4M --iodepth=32 --direct=1 "
        "--ioengine=libaio --buffer_pattern=0xbb --time_based --runtime=60 --eta=never"
    )
    a.run(f"while dd if=$dev {last} 2>/dev/null | cmp -s -n 4096 - /dev/zero; do :; done").check()
    assert a.pr("preempt-abort", key=0xA, sark=0xB, kind=WRITE_EXCLUSIVE_RO) == GOOD
    a.run("dd if=/dev/urandom of=mine bs=1M count=4; dd if=mine of=$dev bs=1M oflag=direct").check()
    load = b.shell.answer()
    assert load.exit_code != 0, "the load ran to its end"
    # A command that was running has failed (EIO), one that came later is refused (EBADE).
    assert "Input/output error" in load.output or "Invalid exchange" in load.output
    a.run("dd if=$dev of=found bs=1M count=4 iflag=direct && cmp mine found").check()
    assert b.access == READS
    assert a.keys == [0xA]
    assert b.register(0xBB) == GOOD
    assert b.access == ALL, "the node is back"


def test_a_mode_change_reaches_the_other_kernel(a: Node, b: Node) -> None:
    """Unit attention and event: the other kernel looks at the caching page again by itself."""

    def write_cache(wanted: str) -> None:
        b.run(
            f"until grep -q 'write {wanted}' /sys/block/${{dev##*/}}/queue/write_cache; do :; done"
        )

    wce = "sg_wr_mode --page=8 --contents=00,12,{} --mask=00,00,04 $sg"
    write_cache("back")
    b.run("dmesg --clear")
    a.run(wce.format("00")).check()
    write_cache("through")
    assert "Mode parameters changed" in b.run("dmesg").output
    assert a.attention == "", "the sender knows"
    a.run(wce.format("04")).check()
    write_cache("back")


def test_a_new_capacity_reaches_both_kernels(server: Served, a: Node, b: Node) -> None:
    (unit,) = server.service.units.values()
    blocks = unit.blocks

    async def resize(to: int) -> None:
        unit.resize(to)

    for size in (blocks // 2, blocks):
        server.call(resize(size))
        for node in (a, b):
            done = node.run(
                f"until [ $(cat /sys/block/${{dev##*/}}/size) = {size} ]; do :; done; "
                "dmesg --read-clear"
            )
            assert "Capacity data has changed" in done.output


def test_a_node_that_crashes_stays_registered(a: Node, b: Node) -> None:
    assert a.register(0xA) == GOOD
    assert b.register(0xB) == GOOD
    assert b.pr("reserve", key=0xB, kind=EXCLUSIVE_ACCESS) == GOOD
    b.shell.close()
    assert a.keys == [0xA, 0xB]
    assert a.access == NOTHING
    b.boot()
    b.shell.ready()
    assert b.access == ALL, "the same initiator port, with its reservation"
    assert a.access == NOTHING


def test_a_reservation_outlives_the_server(tmp_path: Path) -> None:
    """APTPL, and a server that is killed: what its state file says is all that is left."""
    image = tmp_path / "shared.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    config = f'{SHARED}uri = "{image}"\n{HBAS}'
    with HbaProcess(config=config) as server, booted(*server.sockets) as (a, b):
        for node, key in ((a, 0xA), (b, 0xB)):
            assert node.pr("register", sark=key, more="--param-aptpl") == GOOD
        assert a.pr("reserve", key=0xA, kind=EXCLUSIVE_ACCESS) == GOOD
        os.kill(server.pid, signal.SIGKILL)
    with HbaProcess(config=config) as server, booted(server.sockets[1]) as (b,):
        assert b.keys == [0xA, 0xB]
        assert "generation=0x0" in b.reservation
        assert "Exclusive Access" in b.reservation
        assert b.access == NOTHING
        capabilities = b.run("sg_persist --no-inquiry --in --report-capabilities $sg").check()
        assert "Persist Through Power Loss Active(PTPL_A): 1" in capabilities
        assert b.pr("preempt", key=0xB, sark=0xA, kind=EXCLUSIVE_ACCESS) == GOOD
        assert b.access == ALL
