"""What Linux makes of a device that means no good: its kernel complains, or nothing comes of it.

Not all can be met here: over vhost-user the front end resets.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from vscsi_emu.control import Client
from vscsi_emu.hostile import BEHAVIOURS, Behaviour, Place
from vscsi_emu.testing import GuestRun, HbaProcess, UmlGuest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

NEVER = "used-never"
SEEN = [each for each in BEHAVIOURS.values() if each.linux and each.name != NEVER]
EARLY = (Place.FEATURES, Place.CONFIG)
"""Met while the driver probes, and never again."""
SEEDS = {"config-changes": 2177}
"""Where it matters: with this one `max_target` is little more than 255."""
GUEST_SECONDS = 150.0
SECONDS = 60.0
MISDEEDS = 20

SCRIPT = """
dmesg | grep Direct-Access
dev=$(disk 0:0)
n=0
while n=$((n + 1)); do
    dd if=/dev/urandom of=block bs=4k count=8 2>/dev/null
    dd if=block of=$dev bs=4k oflag=direct 2>/dev/null || echo "failed write"
    dd if=$dev of=back bs=4k count=8 iflag=direct 2>/dev/null || echo "failed read"
    cmp block back || echo "failed comparison"
    echo "round $n"
done
"""


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def rounds(guest: GuestRun) -> int:
    return guest.output.count("round ")


@pytest.mark.parametrize("behaviour", SEEN, ids=lambda behaviour: behaviour.name)
def test_linux_complains_or_goes_on(behaviour: Behaviour) -> None:
    with (
        HbaProcess(["mem:16M"], monitor=True) as hba,
        Client(str(hba.monitor)) as client,
    ):
        early = behaviour.place in EARLY
        seed = SEEDS.get(behaviour.name, 1)
        client.hostile_set(names=[behaviour.name], seed=seed, armed=early)
        with UmlGuest([hba.socket]).start(SCRIPT, GUEST_SECONDS) as guest:
            assert soon(lambda: rounds(guest) > 1), guest.output + guest.console
            if not early:
                assert client.hostile_query().done == 0
                client.hostile_arm()
            if said := re.search(r'"(.*)"', behaviour.linux):
                assert soon(lambda: said[1] in guest.output + guest.console), guest.console
                return
            misdeeds = 1 if early else MISDEEDS
            assert soon(lambda: client.hostile_query().done >= misdeeds)
            then = rounds(guest)
            assert soon(lambda: rounds(guest) > then + 2), guest.output + guest.console
            assert "failed" not in guest.output


WAITING = """
dev=$(disk 0:0)
echo 1 >/sys/block/${dev##*/}/device/timeout
echo "ready"
until [ -e /srv/armed ]; do sleep 0.1; done
(dd if=$dev of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null; echo "ended") &
while sleep 1; do echo "a second"; done
"""


def test_linux_waits_for_what_is_never_used() -> None:
    """Its timeout passes some times: it neither gives up nor aborts."""
    with (
        HbaProcess(["mem:16M"], monitor=True) as hba,
        Client(str(hba.monitor)) as client,
    ):
        client.hostile_set(names=[NEVER], armed=False)
        with UmlGuest([hba.socket]).start(WAITING, GUEST_SECONDS) as guest:
            assert soon(lambda: "ready" in guest.output), guest.console
            client.hostile_arm()
            (guest.directory / "armed").touch()
            assert soon(lambda: guest.output.count("a second") > 3), guest.output
            assert client.hostile_query().done == 1
            assert "ended" not in guest.output
            assert client.tmf_log() == []
