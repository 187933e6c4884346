"""``from vscsi_emu import …``."""

import asyncio
from pathlib import Path

import pytest

import vscsi_emu
from vscsi_emu import Service, from_arguments


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
            assert list(service.hbas[0].targets) == [0]
            stop.set()
            await service.serve(stop)

    asyncio.run(main())
    assert not socket.exists()
