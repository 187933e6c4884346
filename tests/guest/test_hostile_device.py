"""What Linux makes of a device that means no good: its kernel complains, or nothing comes of it.

Not all can be met here: over vhost-user the front end resets, and Linux gives a command that is
never answered 30 s.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from vscsi_emu.control import Client
from vscsi_emu.hostile import BEHAVIOURS, Behaviour
from vscsi_emu.testing import GuestRun, HbaProcess, UmlGuest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

SEEN = [each for each in BEHAVIOURS.values() if each.linux]
BOOT_SECONDS = 120.0
SECONDS = 60.0
MISDEEDS = 20

SCRIPT = """
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
        client.hostile_set(names=[behaviour.name], seed=1, armed=False)
        with UmlGuest([hba.socket]).start(SCRIPT, BOOT_SECONDS) as guest:
            assert soon(lambda: rounds(guest) > 1), guest.output + guest.console
            assert client.hostile_query().done == 0
            client.hostile_arm()
            if said := re.search(r'"(.*)"', behaviour.linux):
                assert soon(lambda: said[1] in guest.console), guest.console
                return
            assert soon(lambda: client.hostile_query().done >= MISDEEDS)
            then = rounds(guest)
            assert soon(lambda: rounds(guest) > then + 2), guest.output + guest.console
            assert "failed" not in guest.output
