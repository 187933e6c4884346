"""Two paths to one disk: dm-multipath makes one map of them, which outlives either.

The kernel is User-Mode Linux, with Debian's multipathd and udev. Each test begins with both paths
active/optimized, and has I/O on the map all the time, which is verified and must never fail.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping

import pytest

from vscsi_emu.scsi.port_groups import AccessState
from vscsi_emu.testing import GuestUnavailable
from vscsi_emu.testing.debian import multipath_tools
from vscsi_emu.testing.modules import load_order, module_directory
from vscsi_emu.testing.uml import MODULE_TREE

from .served import Served
from .shell import Shell

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

WWN = "5000c50000abcdef"
MAP = f"3{WWN}"  # udev's ID_SERIAL: the designator's type and its value
CONFIG = f"""
[[lun]]
id = "shared"
uri = "mem:64M"
wwn = "{WWN}"
[[hba]]
socket = "a.sock"
luns = {{"0:0" = "shared"}}
port-group = 1
[[hba]]
socket = "b.sock"
luns = {{"0:0" = "shared"}}
port-group = 2
"""
MODULES = ("dm_multipath", "dm_service_time", "overlay")
GROUPS = (1, 2)
INTERRUPTED = 128  # fio's exit code after SIGINT
SETTLE_SECONDS = 60.0

_MULTIPATH_CONF = """
defaults {
    user_friendly_names no
    find_multipaths no
    path_grouping_policy group_by_prio
    failback immediate
    no_path_retry fail
    polling_interval 1
    max_polling_interval 1
}
"""


def prepare() -> str:
    """Unpacked packages laid over the root, then the daemons, until the map is there."""
    load = "\n".join(
        f"busybox insmod {module}" for module in load_order(module_directory(MODULE_TREE), MODULES)
    )
    return f"""
set -e
{load}
mkdir /run/packages /run/etc /run/etc.work /run/udev
mount -t hostfs -o {multipath_tools()} none /run/packages
mount -t overlay -o lowerdir=/run/packages/usr:/usr overlay /usr
for d in bin lib sbin; do
    mount -t overlay -o lowerdir=/run/packages/$d:/usr/$d overlay /usr/$d
done
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work overlay /etc
cat >/etc/multipath.conf <<'END'
{_MULTIPATH_CONF}
END
/usr/lib/systemd/systemd-udevd --daemon
udevadm trigger --subsystem-match=block --action=add
udevadm settle --timeout=10
multipathd -d -s >/tmp/multipathd.log 2>&1 &
until [ -b /dev/mapper/{MAP} ]; do sleep 0.1; done
set +e
"""


READY, FAULTY, GHOST = (
    "active ready running 50",
    "failed faulty running",
    "active ghost running 1",
)


class Host:
    """The guest, its two HBAs, and the disk behind them. Paths are numbered as HBAs are."""

    def __init__(self, served: Served, shell: Shell) -> None:
        self._served = served
        self._shell = shell
        self._hbas = served.service.hbas
        (self._unit,) = served.service.units.values()

    def run(self, command: str) -> str:
        return self._shell.run(command).check()

    @property
    def paths(self) -> dict[int, str]:
        """What multipathd says of each: in the map, by its checker, in the kernel, its priority."""
        lines = self.run("multipathd show paths raw format '%i %t %T %o %p'").splitlines()
        return {int(line[0]): line.partition(" ")[2] for line in lines if line}

    def until(self, *states: str | None) -> None:
        """Waits for the paths to be in states that begin so; None: not there."""
        wanted = {path: state for path, state in enumerate(states) if state is not None}
        deadline = time.monotonic() + SETTLE_SECONDS
        while not _match(paths := self.paths, wanted):
            assert time.monotonic() < deadline, (paths, self.run("cat multipathd.log; dmesg"))
            time.sleep(0.2)

    @property
    def access_states(self) -> list[str]:
        """Of each port group, with the reason, as sg_rtpg says it."""
        report = self.run("sg_turs /dev/sg0; sg_rtpg --decode /dev/sg0")
        states = re.findall(r"access state : 0x\w+ \((.*)\)", report)
        reasons = re.findall(r"status code : 0x\w+ \((.*)\)", report)
        return [f"{state}, {reason}" for state, reason in zip(states, reasons, strict=True)]

    def sectors_written(self, path: int | None = None) -> int:
        """To the map, or to it through one path, since that was found."""
        device = "dm-0" if path is None else f"{path}:0:0:0"
        directory = "block" if path is None else "bus/scsi/devices"
        tail = "" if path is None else "/block/*"
        return int(self.run(f"cat /sys/{directory}/{device}{tail}/stat").split()[6])

    def expect_io(self, *paths: int) -> None:
        """I/O goes on now, through these paths and no other."""
        for path in paths:
            before = self.sectors_written(path)
            deadline = time.monotonic() + SETTLE_SECONDS
            while self.sectors_written(path) == before:
                assert time.monotonic() < deadline, f"no I/O through path {path}"
        for path in set(self.paths) - set(paths):
            before, map_before = self.sectors_written(path), self.sectors_written()
            while self.sectors_written() < map_before + 1024:
                pass
            assert self.sectors_written(path) == before, f"I/O through path {path}"

    def in_flight(self, path: int) -> int:
        counts = self.run(f"cat /sys/bus/scsi/devices/{path}:0:0:0/block/*/inflight")
        return sum(map(int, counts.split()))

    def pull(self, path: int) -> None:
        """While commands are under way there."""
        [disk] = self._served.service.disks.values()
        deadline = time.monotonic() + SETTLE_SECONDS
        self._served.call(disk.pause(deadline=SETTLE_SECONDS))
        # dm-multipath may have sent all that it can on the other path.
        while not self.in_flight(path):
            assert time.monotonic() < deadline, f"nothing in flight on path {path}"
            self._served.call(disk.resume())
            self._served.call(disk.pause(deadline=SETTLE_SECONDS))
        self._served.call(self._hbas[path].remove_lun((0, 0)))
        self._served.call(disk.resume())

    def plug(self, path: int) -> None:
        async def add() -> None:
            self._hbas[path].add_lun((0, 0), self._unit)

        self._served.call(add())

    def move(self, *states: AccessState) -> None:
        """The array changes the access states of the paths' port groups: implicitly."""
        groups = dict(zip(GROUPS, states, strict=True))
        self._served.call(self._unit.port_groups.change(groups))


def _match(paths: Mapping[int, str], wanted: Mapping[int, str]) -> bool:
    return paths.keys() == wanted.keys() and all(
        paths[path].startswith(state) for path, state in wanted.items()
    )


@pytest.fixture(scope="module")
def loaded() -> Iterator[Host]:
    """fio writes to the map and reads back, until it is interrupted or sees an error."""
    with Served(CONFIG) as served:
        try:
            shell = Shell(*served.sockets, prepare=prepare())
        except GuestUnavailable as error:
            pytest.skip(str(error))
        try:
            shell.ready()
            host = Host(served, shell)
            host.run(
                f"(fio --name=load --filename=/dev/mapper/{MAP} --rw=randwrite --bs=16k --size=32M "
                "--rate_iops=400 --iodepth=8 --ioengine=libaio --direct=1 --verify=crc32c "
                "--verify_fatal=1 --verify_backlog=64 --time_based --runtime=600 --thread "
                "--eta=never >fio.log 2>&1; echo $? >fio.code) >/dev/null 2>&1 &"
            )
            yield host
            host.run("kill -INT $(pidof fio); until [ -s fio.code ]; do sleep 0.1; done")
            log = host.run("cat fio.log fio.code")
            assert "err= 0" in log
            assert log.split()[-1] == str(INTERRUPTED), log
        finally:
            shell.close()


@pytest.fixture
def host(loaded: Host) -> Iterator[Host]:
    loaded.until(READY, READY)
    loaded.expect_io(0, 1)
    loaded.run("dmesg --clear")
    yield loaded
    loaded.move(AccessState.ACTIVE_OPTIMIZED, AccessState.ACTIVE_OPTIMIZED)
    loaded.run("[ ! -e fio.code ] || { cat fio.log; false; }")


def test_both_paths_are_one_map(host: Host) -> None:
    assert host.run("multipathd show maps raw format '%w %N'").split() == [MAP, "2"]
    topology = host.run("multipath -ll")
    assert topology.count(MAP) == 1
    assert "VSCSIEMU,Virtual disk" in topology
    assert "prio=50 status=active" in topology
    assert topology.count("active ready running") == 2


@pytest.mark.parametrize("path", [0, 1])
def test_io_outlives_a_pulled_path(host: Host, path: int) -> None:
    other = 1 - path
    host.pull(path)
    host.until(*(None if number == path else READY for number in (0, 1)))
    assert re.search(r"multipath: \d+:\d+: Failing path 8:\d+", host.run("dmesg"))
    host.expect_io(other)
    host.plug(path)
    host.until(READY, READY)
    host.expect_io(0, 1)


def test_io_outlives_a_path_that_fails(host: Host) -> None:
    """The device stays, but its port is unavailable."""
    host.move(AccessState.UNAVAILABLE, AccessState.ACTIVE_OPTIMIZED)
    host.until(FAULTY, READY)
    assert "Failing path" in host.run("dmesg")
    host.expect_io(1)
    host.move(AccessState.ACTIVE_OPTIMIZED, AccessState.ACTIVE_OPTIMIZED)
    host.until(READY, READY)
    host.expect_io(0, 1)


def test_a_standby_path_is_not_used_until_the_initiator_takes_over(host: Host) -> None:
    """The array puts one port group into standby; SET TARGET PORT GROUPS makes it the other."""
    host.move(AccessState.ACTIVE_OPTIMIZED, AccessState.STANDBY)
    host.until(READY, GHOST)
    host.expect_io(0)
    implicitly = "target port asym. state changed by implicit lu behaviour"
    assert host.access_states[1] == f"standby, {implicitly}"
    # sg_stpg 1.46 exits with 0 whatever happened.
    assert not host.run(f"sg_stpg --tp={GROUPS[0]},{GROUPS[1]} --state=2,0 /dev/sg0")
    host.until(GHOST, READY)
    host.expect_io(1)
    explicitly = "target port asym. state changed by SET TARGET PORT GROUPS command"
    assert host.access_states == [f"standby, {explicitly}", f"active/optimized, {explicitly}"]
