"""Linux as the guest of a pass-through over vhost-user, to the sg drivers of a real kernel: QEMU in
a User-Mode Linux guest whose disk is scsi_debug's. (User-Mode Linux does not run in itself.)"""

from __future__ import annotations

import re
import shlex
from functools import cache

import pytest

from tests.guest import debug_host
from tests.guest.nested import ERRORS, KEYS
from tests.guest.report import Section, parse
from vscsi_emu.testing import GuestUnavailable, QemuGuest, UmlGuest
from vscsi_emu.testing.debian import CACHE_VARIABLE, cache_directory

pytestmark = [pytest.mark.guest, pytest.mark.timeout(500)]

MEMORY_MIB = 1100
SECONDS = 460.0
LIMIT_KIB = 64


def script(arguments: str, parameters: str = "") -> str:
    # The cache is read-only there: links to what is in it, and locks beside them.
    cache, theirs = cache_directory().absolute(), "/tmp/cache"
    links = [
        f"ln -s {shlex.quote(str(path))} {theirs}/{shlex.quote(str(path.relative_to(cache)))}"
        for path in (*cache.glob("*.cpio"), *(cache / "debian").iterdir())
        if path.suffix != ".lock"
    ]
    return debug_host.script(
        "\n".join(
            [
                f"mkdir -p {theirs}/debian",
                *links,
                f"export {CACHE_VARIABLE}={theirs}",
                f"scsi_debug dev_size_mb=64 {parameters}",
                f"echo {LIMIT_KIB} >/sys/block/sda/queue/max_sectors_kb",
                f"{debug_host.PYTHON} -m tests.guest.nested {arguments}",
            ]
        )
    )


@cache
def ran() -> dict[str, Section]:
    inner = QemuGuest(programs=["sg_raw"])
    outer = UmlGuest(memory_mib=MEMORY_MIB)
    try:
        outer.require()
        inner.require()
        inner.make_initramfs()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    return parse(outer.run(script("/dev/sda"), SECONDS).check().output)


def test_fio_verifies_at_a_depth_of_64() -> None:
    output = ran()["fio"].check()
    assert len(re.findall(r"IO depths.*>=64=", output)) == 2, output
    assert output.count("err= 0") == 2, output


def test_linux_sees_the_limits_of_its_host() -> None:
    first, *page = ran()["limits"].check().splitlines()
    assert int(first) == LIMIT_KIB
    assert f"Maximum transfer length: {LIMIT_KIB * 2} blocks" in "\n".join(page)


@pytest.mark.parametrize("error", ERRORS)
def test_sg_raw_says_the_same_in_the_guest_and_on_the_host(error: str) -> None:
    guest, host = ran()[error].check(), ran()[f"host-{error}"].check()
    assert KEYS[error] in guest
    assert guest == host


def main() -> None:
    """``python -m tests.guest.test_nested``: the figures of docs/passthrough.md."""
    bench = script("--bench /dev/sda /dev/sg0", "delay=0")
    print(UmlGuest(memory_mib=MEMORY_MIB).run(bench, 900).output)


if __name__ == "__main__":
    main()
