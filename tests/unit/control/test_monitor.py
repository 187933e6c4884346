"""The monitor's socket: its methods, and clients that mean no good."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.control.monitor import TIMEOUT, Wire, monitored
from tests.unit.transport.harness import Server, attached
from vscsi_emu.config import from_file
from vscsi_emu.control import AsyncClient, Client, RpcError
from vscsi_emu.control.faces import AsyncFace, SyncFace
from vscsi_emu.control.local import Local
from vscsi_emu.control.methods import METHODS
from vscsi_emu.control.server import MAX_CONNECTIONS, MAX_EVENTS, MAX_LINE, Monitor
from vscsi_emu.disk import OperationError
from vscsi_emu.journal import Kind
from vscsi_emu.service import StartError
from vscsi_emu.virtio.scsi import TmfType

MIB = 1 << 20


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Server, str]]:
    with monitored(tmp_path) as pair:
        yield pair


@pytest.fixture
def server(running: tuple[Server, str]) -> Server:
    return running[0]


@pytest.fixture
def path(running: tuple[Server, str]) -> str:
    return running[1]


@pytest.fixture
def client(path: str) -> Iterator[Client]:
    with Client(path, timeout=TIMEOUT) as connected:
        yield connected


@pytest.fixture
def wire(path: str) -> Iterator[Wire]:
    connected = Wire(path)
    yield connected
    connected.close()


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# ── The socket ──────────────────────────────────────────────────────────────────────────────────


def test_the_socket_is_its_users_only_and_goes_with_the_server(tmp_path: Path) -> None:
    with monitored(tmp_path) as (_, path):
        mode = os.stat(path).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert not os.path.exists(path)


def test_a_place_that_is_taken_is_refused(server: Server, path: str) -> None:
    with pytest.raises(StartError, match="a live server listens there"):
        server.run(Monitor(server.service, server.stop, path=path).__aenter__())


def test_a_line_that_is_too_long_ends_the_connection(path: str, wire: Wire) -> None:
    def flood() -> None:
        try:
            wire.socket.sendall(b"x" * (4 * MAX_LINE))
        except OSError:
            return

    flood()
    error = wire.receive()["error"]
    assert error["code"] == -32600
    assert str(MAX_LINE) in error["message"]
    with Client(path) as other:
        assert other.hba_query().luns


def test_half_a_line_holds_nobody_up(path: str, wire: Wire, client: Client) -> None:
    wire.socket.sendall(b'{"jsonrpc": "2.0", "method": "qu')
    assert client.hba_query().pid == os.getpid()
    wire.socket.shutdown(socket.SHUT_WR)
    assert wire.receive() is None


def test_many_requests_in_one_packet_are_answered_in_order(wire: Wire) -> None:
    request = {"jsonrpc": "2.0", "method": "tmf.log"}
    wire.send(b"\n".join(json.dumps({**request, "id": n}).encode() for n in range(50)))
    assert [wire.receive()["id"] for _ in range(50)] == list(range(50))


def test_a_client_that_never_reads_holds_nobody_up(
    wire: Wire, client: Client, server: Server
) -> None:
    wire.socket.setblocking(False)
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "hba.query"}).encode() + b"\n"
    with suppress(BlockingIOError):
        while True:
            wire.socket.send(line * 100)
    started = time.monotonic()
    for _ in range(20):
        client.hba_query()
    assert time.monotonic() - started < TIMEOUT / 2
    assert len(server.service.hbas) == 1


def test_too_many_connections_are_told_so(path: str) -> None:
    wires = [Wire(path) for _ in range(MAX_CONNECTIONS + 1)]
    try:
        error = wires[-1].receive()["error"]
        assert "connections are open already" in error["message"]
        assert wires[-1].receive() is None
        wires[0].close()
        assert wires[1].call("tmf.log")["result"] == []

        def admitted() -> bool:
            with Client(path) as late:
                try:
                    return late.tmf_log() == []
                except (RpcError, ConnectionError):
                    return False

        assert soon(admitted)
    finally:
        for wire in wires:
            wire.close()


def test_the_server_ends_while_clients_are_there(tmp_path: Path) -> None:
    with monitored(tmp_path) as (_, path):
        wire = Wire(path)
        wire.send({"jsonrpc": "2.0", "id": 1, "method": "events.subscribe"})
        assert wire.receive()["result"] is None
    assert wire.receive() is None
    wire.close()


# ── Methods ─────────────────────────────────────────────────────────────────────────────────────


def test_every_method_is_in_both_faces() -> None:
    names = {name.replace(".", "_") for name in METHODS}
    for face in (SyncFace, AsyncFace):
        declared = {n: v.method.name for n, v in vars(face).items() if hasattr(v, "method")}
        assert declared == {name.replace(".", "_"): name for name in METHODS}
        assert declared.keys() == names


def test_a_disk_is_added_used_and_removed(server: Server, client: Client) -> None:
    with attached(server.sockets[0]) as device:
        [added] = client.lun_add(luns=["3:2=mem:2M,serial=ABC"], id="extra")
        assert (added.id, added.lun) == ("extra", "3:2")
        state = {lun.id: lun for lun in client.hba_query().luns}["extra"]
        assert (state.size, state.serial) == (2 * MIB, "ABC")
        assert state.at == {server.sockets[0]: ["3:2"]}
        assert device.execute(3, 2, bytes(6)).response == 0
        client.lun_remove(lun=["extra"])
        assert device.execute(3, 2, bytes(6)).sense[12] == 0x25  # LUN NOT SUPPORTED
    assert list(server.service.disks) == ["disk-0-0"]


REFUSED: list[tuple[str, dict[str, object], str, str]] = [
    ("lun.add", {"luns": ["nope:1"]}, "luns", "unknown scheme"),
    ("lun.add", {"luns": ["0:0=mem:1M"]}, "luns", "0:0 already"),
    ("lun.add", {"luns": ["1:0=mem:1M", "1:0=mem:1M"]}, "luns", "1:0 already"),
    ("lun.add", {"luns": ["1:0=mem:1M", "/no/such/file"]}, "luns", "no such file"),
    ("lun.add", {"luns": ["1:0=mem:1M"], "id": "disk-0-0"}, "id", "in use"),
    ("lun.add", {"luns": ["1:0=mem:1M"], "id": "5:5"}, "id", "address"),
    ("lun.add", {"luns": ["1:0=mem:1M"], "hba": "x"}, "hba", "no HBA 'x'"),
    ("lun.map", {"id": "disk-0-0", "at": "0:0"}, "at", "taken"),
    ("lun.map", {"id": "disk-0-0", "at": "0"}, "at", "TARGET:LUN"),
    ("lun.remove", {"lun": ["0:1"]}, "lun", "no unit at 0:1"),
    ("lun.remove", {"lun": ["disk-0-1"]}, "lun", "did you mean 'disk-0-0'?"),
    ("lun.remove", {"lun": ["0:0"], "deadline": 0}, "deadline", "add force"),
    ("lun.remove", {"lun": ["0:0"], "deadline": -1}, "deadline", "not within"),
    ("lun.resize", {"lun": "0:0", "size": "1X"}, "size", "not a size"),
    ("lun.resize", {"lun": "0:0", "size": 1000}, "size", "multiple of"),
    ("lun.resize", {"lun": "0:0", "size": 0}, "size", "empty"),
    ("lun.set", {"lun": "0:0", "cache": "writebak"}, "cache", "did you mean 'writeback'?"),
    ("lun.pause", {"lun": "0:0", "deadline": 0}, "deadline", "not above 0"),
    ("events.subscribe", {"kinds": ["lun.add"]}, "kinds", "did you mean 'lun.added'?"),
    ("tmf.log", {"count": 0}, "count", "below 1"),
]


@pytest.mark.parametrize(("name", "params", "parameter", "text"), REFUSED)
def test_a_bad_call_names_the_parameter_and_changes_nothing(
    server: Server, wire: Wire, name: str, params: dict[str, object], parameter: str, text: str
) -> None:
    error = wire.call(name, **params)["error"]
    assert error["code"] == -32602
    assert error["data"] == {"parameter": parameter}
    assert text in error["message"]
    assert list(server.service.disks) == ["disk-0-0"]
    assert list(server.hba.luns) == [(0, 0)]


def test_a_failed_add_gives_its_storage_back(client: Client, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    with pytest.raises(RpcError, match="no such file"):
        client.lun_add(luns=[str(image), "/no/such/file"])
    client.lun_add(luns=[str(image)])


def test_an_image_can_come_back_at_once(client: Client, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    for _ in range(5):
        client.lun_add(luns=[f"1:1={image}"])
        client.lun_remove(lun=["1:1"])
    # Of the threads that used a unit's storage the last one closes it, maybe after the answer.
    deadline = time.monotonic() + TIMEOUT
    while open_files(image):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def open_files(path: Path) -> int:
    """Descriptors of this process."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found += os.path.samestat(os.stat(f"/proc/self/fd/{name}"), path.stat())
    return found


def test_a_unit_is_there_until_its_last_address_is_gone(server: Server, client: Client) -> None:
    client.lun_map(id="disk-0-0", at="4:4")
    client.lun_remove(lun=["0:0"])
    assert list(server.service.disks) == ["disk-0-0"]
    client.lun_map(id="disk-0-0", at="5:5")
    client.lun_remove(lun=["disk-0-0"])
    assert not server.service.disks
    assert not server.hba.luns


def test_what_is_exported_is_the_same_configuration(
    server: Server, client: Client, tmp_path: Path
) -> None:
    image = tmp_path / 'a "strange", name=ü.img'
    image.write_bytes(bytes(MIB))
    quoted = str(image).replace(",", ",,")
    client.lun_add(luns=[f"1:1={quoted},block-size=4096,vendor=A B,direct=off,discard=off"])
    client.lun_add(luns=["mem:2M,cache=writethrough,removable", "9:16383=null:3T,ro"])
    client.lun_map(id="disk-1-1", at="7:7")
    client.lun_resize(lun="disk-1-0", size="3M")
    client.lun_set(lun="disk-0-0", read_only=True, cache="writethrough")
    file = tmp_path / "hba.toml"
    file.write_text(client.hba_export())
    read, served = from_file(str(file)), server.service.config
    assert [(lun.id, lun.spec) for lun in read.luns] == [(lun.id, lun.spec) for lun in served.luns]
    ids = {lun.name: lun.id for config in (read, served) for lun in config.luns}
    for old, new in zip(served.hbas, read.hbas, strict=True):
        assert {at: ids[n] for at, n in new.luns.items()} == {
            at: ids[n] for at, n in old.luns.items()
        }
        assert (new.socket, new.queues, new.initiator) == (old.socket, old.queues, old.initiator)


def test_an_hba_without_units_round_trips(client: Client, tmp_path: Path) -> None:
    client.lun_remove(lun=["0:0"])
    file = tmp_path / "hba.toml"
    file.write_text(client.hba_export())
    assert from_file(str(file)).hbas[0].luns == {}


def test_limits_are_those_of_the_pages(server: Server, client: Client) -> None:
    limits = client.limits_query()
    [unit] = server.service.disks.values()
    assert limits.luns[0].max_transfer_blocks == unit.unit.limits.max_transfer_blocks > 0
    assert limits.hbas[0].max_sectors == server.hba.config.max_sectors


def test_task_management_is_remembered(server: Server, client: Client) -> None:
    with attached(server.sockets[0]) as device:
        assert device.task_management(TmfType.ABORT_TASK, 0, 0, tag=0x55) == 0
        assert device.task_management(TmfType.LOGICAL_UNIT_RESET, 0, 0) == 0
        assert device.task_management(TmfType.LOGICAL_UNIT_RESET, 0, 9) == 12
    first, second, third = client.tmf_log()
    assert (first.function, first.lun, first.tag, first.response) == ("ABORT_TASK", "0:0", 85, "OK")
    assert (second.function, second.tag, second.response) == ("LOGICAL_UNIT_RESET", None, "OK")
    assert (third.lun, third.response) == ("0:9", "INCORRECT_LUN")
    assert client.tmf_log(count=1) == [third]


# ── Events ──────────────────────────────────────────────────────────────────────────────────────


def test_events_tell_what_happens(server: Server, client: Client, path: str) -> None:
    client.events_subscribe()
    with Client(path) as other:
        other.lun_add(luns=["1:0=mem:1M"])
        other.lun_resize(lun="1:0", size="2M")
        other.lun_set(lun="1:0", read_only=True)
        other.lun_pause(lun="1:0")
        other.lun_resume(lun="1:0")
        other.lun_remove(lun=["1:0"])
    with attached(server.sockets[0]) as device:
        device.task_management(TmfType.LOGICAL_UNIT_RESET, 0, 0)
    kinds: list[str] = []
    while not kinds or kinds[-1] != Kind.SESSION_DISCONNECTED:
        event = client.next_event(TIMEOUT)
        assert event is not None, kinds
        kinds.append(event.kind)
    assert kinds == [
        Kind.LUN_ADDED,
        Kind.ATTENTION,
        Kind.LUN_RESIZED,
        Kind.ATTENTION,
        Kind.LUN_CHANGED,
        Kind.LUN_PAUSED,
        Kind.LUN_RESUMED,
        Kind.LUN_REMOVED,
        Kind.SESSION_CONNECTED,
        Kind.ATTENTION,
        Kind.TMF,
        Kind.SESSION_DISCONNECTED,
    ]


def test_only_what_was_asked_for_is_told(client: Client) -> None:
    client.events_subscribe(kinds=["lun.removed"])
    client.lun_add(luns=["1:0=mem:1M"])
    client.lun_remove(lun=["1:0"])
    event = client.next_event(TIMEOUT)
    assert event is not None
    assert (event.kind, event.lun) == ("lun.removed", "1:0")
    assert client.next_event(0.1) is None


def test_a_slow_reader_is_told_how_much_it_missed(server: Server, wire: Wire) -> None:
    wire.call("events.subscribe")
    journal, total = server.service.journal, 4 * MAX_EVENTS
    text = "x" * 1000

    def flood() -> None:
        for number in range(total):
            journal.note(Kind.ERROR, f"{number} {text}")

    server.do(flood)
    got = [wire.receive()["params"] for _ in range(MAX_EVENTS)]
    server.do(lambda: journal.note(Kind.ERROR, "last"))
    last = wire.receive()["params"]
    assert last["text"] == "last"
    assert len(got) + sum(event["missed"] for event in [*got, last]) == total


def test_a_client_that_left_is_watched_for_no_more(server: Server, path: str) -> None:
    with Client(path) as client:
        client.events_subscribe()
        assert server.service.journal.watched
    assert soon(lambda: not server.service.journal.watched)


# ── Other faces ─────────────────────────────────────────────────────────────────────────────────


def test_asyncio_clients(path: str) -> None:
    async def main() -> None:
        async with AsyncClient(path) as client:
            await client.events_subscribe(kinds=["lun.added"])
            added, state = await asyncio.gather(
                client.lun_add(luns=["2:0=mem:1M"]), client.hba_query()
            )
            assert added[0].lun == "2:0"
            assert len(state.luns) == 2
            assert (await client.next_event()).lun == "2:0"
            with pytest.raises(RpcError) as caught:
                await client.lun_resize(lun="9:9", size=5)
            assert caught.value.parameter == "lun"

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_an_asyncio_client_hears_that_the_server_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        with monitored(tmp_path) as (_, path):
            client = await AsyncClient(path).__aenter__()
            await client.tmf_log()
        with pytest.raises(ConnectionError):
            await client.next_event()
        with pytest.raises(ConnectionError):
            await client.hba_query()
        await client.__aexit__(None, None, None)

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_the_same_without_a_socket(server: Server) -> None:
    async def main() -> None:
        local = Local(server.service)
        [added] = await local.lun_add(luns=["2:0=mem:1M"])
        assert (await local.lun_resize(lun=added.id, size="2M")).size == 2 * MIB
        with pytest.raises(OperationError, match="journal"):
            await local.events_subscribe()

    server.run(main())


def test_a_client_whose_server_is_silent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with Client(str(tmp_path / "s"), timeout=0.1) as client, pytest.raises(TimeoutError):
            client.hba_query()


def test_a_thousand_disks_in_one_call(client: Client) -> None:
    luns = [f"{1 + n // 250}:{n % 250}=mem:1M" for n in range(1000)]
    started = time.monotonic()
    assert len(client.lun_add(luns=luns)) == 1000
    assert len(client.hba_query().hbas[0].luns) == 1001
    client.lun_remove(lun=[lun.partition("=")[0] for lun in luns])
    # A second each, here and now; ten for a machine with other things to do.
    assert time.monotonic() - started < 30
