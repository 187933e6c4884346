"""``from vscsi_emu import …``."""

import asyncio
from pathlib import Path

import pytest

import vscsi_emu
from vscsi_emu import AsyncHba, Hba, Service, from_arguments
from vscsi_emu.config import ConfigError
from vscsi_emu.service import StartError


def test_every_public_name_is_there() -> None:
    for name in vscsi_emu.__all__:
        assert getattr(vscsi_emu, name).__name__ == name
    with pytest.raises(AttributeError, match="'vscsi_emu' has no attribute 'Nothing'"):
        getattr(vscsi_emu, "No" + "thing")


def test_a_server_in_a_program_of_ones_own(tmp_path: Path) -> None:
    socket = tmp_path / "hba.sock"

    async def main() -> None:
        stop = asyncio.Event()
        async with Service(from_arguments(["mem:1M"], socket=str(socket))) as service:
            assert socket.exists()
            assert list(service.hbas[0].luns) == [(0, 0)]
            stop.set()
            await service.serve(stop)

    asyncio.run(main())
    assert not socket.exists()


def test_an_hba_for_asyncio() -> None:
    async def main() -> Path:
        async with AsyncHba("mem:1M", queues=2) as hba:
            (added,) = await hba.control.lun_add(luns=["0:1=mem:1M"])
            assert list(hba.device.luns) == [(0, 0), (0, 1)]
            assert added.hba == str(hba.socket)
            assert f"path={hba.socket}" in hba.how_to_attach()
            assert hba.device.config.num_queues == 2
            return hba.socket.parent

    assert not asyncio.run(main()).exists()


def test_an_hba_for_threads(tmp_path: Path) -> None:
    socket = tmp_path / "hba.sock"
    with Hba("mem:1M", socket=socket) as hba:
        assert hba.socket == socket
        for _ in range(2):  # one front end after the other
            with hba.driver() as guest:
                assert sorted(guest.disks) == [(0, 0)]
    assert not socket.exists()


def test_an_hba_that_cannot_be_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown scheme 'nbd'"):
        Hba("nbd:x")
    with pytest.raises(StartError, match="no such file"), Hba(str(tmp_path / "none")):
        pass
    with pytest.raises(StartError, match="no directory"), Hba(socket=tmp_path / "no/such.sock"):
        pass
    idle = Hba("mem:1M")
    with pytest.raises(RuntimeError, match="when it is entered"):
        _ = idle.socket
    with pytest.raises(RuntimeError, match="does not run"):
        _ = idle.control


def test_calls_are_for_an_hba_that_runs() -> None:
    async def fail() -> None:
        raise OSError("the loop's")

    with Hba() as hba, pytest.raises(OSError, match="the loop's"):
        hba.call(fail)
    with pytest.raises(RuntimeError, match="not running"):
        hba.call(fail)


def test_what_waited_for_a_paused_unit_goes_with_its_driver() -> None:
    # MODE SELECT(6) of a Caching mode page without WCE.
    page = bytes([0, 0, 0, 0, 0x08, 0x12, *bytes(18)])
    cdb = bytes([0x15, 0x10, 0, 0, len(page), 0])
    with Hba("mem:1M") as hba:
        with hba.driver() as guest:
            hba.control.lun_pause(lun="0:0")
            # The first would be answered with the unit attention that the driver's end brings.
            guest.device.submit(0, 0, cdb, data_out=page)
            with pytest.raises(TimeoutError):
                guest.device.wait(guest.device.submit(0, 0, cdb, data_out=page), 0.2)
        while hba.control.hba_query().hbas[0].connected:
            pass
        hba.control.lun_resume(lun="0:0")
        assert hba.control.hba_query().luns[0].write_cache
