"""A server for each test module; after each test it must be as good as new."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.attach import Guest, attach
from tests.conformance.server import Server

FILE_DISK_BYTES = 64 << 20


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Units: 0:0 a file, 0:1 memory with 4096-byte blocks, 7:5 read-only, 255:16383 memory."""
    image = make_image(tmp_path_factory.mktemp("disk"))
    own = [f"{image},cdb-32=on", "0:1=mem:64M,block-size=4096,cdb-32=on"]
    luns = [*own, "7:5=mem:8M,ro", "255:16383=mem:8M"]
    with Server(luns, arguments=["--in-band"]) as server:
        yield server
        assert server.process.terminate() == 0, server.process.log[-4000:]


def make_image(directory: Path) -> Path:
    image = directory / "disk.img"
    with image.open("wb") as file:
        file.truncate(FILE_DISK_BYTES)
    return image


@pytest.fixture
def server(running_server: Server) -> Iterator[Server]:
    yield running_server
    running_server.check()


@pytest.fixture
def guest(server: Server) -> Iterator[Guest]:
    with attach(server) as attached:
        yield attached
