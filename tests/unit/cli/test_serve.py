"""``vscsi-emu serve`` as a program: how it starts, ends, and turns bad input down."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vscsi_emu.virtio import vhost_user as vu

PROGRAM = [sys.executable, "-m", "vscsi_emu", "serve"]
TIMEOUT = 60.0


def refused(*arguments: str) -> str:
    """The one line that says why the server does not start."""
    done = subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


@contextmanager
def serving(
    *arguments: str, pass_fds: tuple[int, ...] = ()
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its first log line."""
    with subprocess.Popen(
        [*PROGRAM, *arguments], stderr=subprocess.PIPE, text=True, pass_fds=pass_fds
    ) as process:
        try:
            assert process.stderr is not None
            yield process, process.stderr.readline()
        finally:
            process.kill()


def features(connection: socket.socket) -> int:
    """What the back end at the other end of `connection` offers."""
    connection.settimeout(TIMEOUT)
    connection.sendall(vu.GET_FEATURES.encode())
    assembler, packet = vu.Assembler(), None
    while packet is None:
        data = connection.recv(assembler.wanted)
        assert data, "the back end closed the connection"
        packet = assembler.feed(data)
    reply = vu.GET_FEATURES.decode_reply(packet)
    assert isinstance(reply, vu.U64)
    return reply.value


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT)
    connection.connect(str(path))
    return connection


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hba.sock"


# ── Starting and ending ─────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("vu.prog.b6", "vu.prog.b7")
def test_serves_until_sigterm(path: Path) -> None:
    with serving(f"--socket-path={path}", "--lun", "mem:1M") as (process, _):
        with connected(path) as connection:
            assert features(connection) >> 32 & 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT) == 0
        assert not path.exists()


@pytest.mark.normative("vu.prog.b4")
def test_stays_in_the_foreground(path: Path) -> None:
    with serving("--socket-path", str(path), "--lun", "mem:1M") as (process, _):
        with connected(path) as connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        assert int.from_bytes(credentials[:4], sys.byteorder) == process.pid
        assert process.poll() is None


def test_one_log_line_says_how_to_attach(path: Path) -> None:
    luns = ("--lun", "mem:1M", "--queues", "4")
    with serving("--socket-path", str(path), *luns) as (_, line):
        assert f"listening on {path};" in line
        assert f"-chardev socket,id=hba,path={path} " in line
        device = re.search(r"-device vhost-user-scsi-pci,chardev=hba,(\S+)", line)
        assert device
        properties = dict(item.split("=") for item in device[1].split(","))
        assert properties["num_queues"] == "4"
        assert int(properties["max_sectors"]) > 0
        assert int(properties["cmd_per_lun"]) > 0
        assert f"virtio_uml.device={path}:8" in line


def test_listens_after_less_than_half_a_second_of_work(path: Path) -> None:
    """In processor time, the least of some tries: a busy machine stretches even that."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    tries = []
    for _ in range(4):
        before = used()
        with serving("--socket-path", str(path), "--lun", "mem:1M") as (process, line):
            assert "listening" in line
            process.terminate()
            assert process.wait(TIMEOUT) == 0
        tries.append(used() - before)
    assert min(tries) < 0.5, tries


@pytest.mark.normative("vu.prog.b8", "vu.comm.b8")
@pytest.mark.parametrize("listening", [False, True])
def test_takes_an_open_socket(path: Path, listening: bool) -> None:
    if listening:
        theirs = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.bind(str(path))
        theirs.listen(1)
        ours = connected(path)
    else:
        ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    with ours, theirs, serving(f"--fd={fd}", "--lun", "mem:1M", pass_fds=(fd,)) as (process, _):
        assert features(ours) >> 32 & 1
        ours.close()
        if listening:
            process.terminate()
        assert process.wait(TIMEOUT) == 0


def test_the_next_front_end_is_served_after_this_one(path: Path) -> None:
    with serving("--socket-path", str(path), "--lun", "mem:1M"), connected(path) as first:
        assert features(first)
        with connected(path) as second:
            second.sendall(vu.GET_FEATURES.encode())
            second.settimeout(0.2)
            with pytest.raises(TimeoutError):
                second.recv(1)
            first.close()
            second.settimeout(TIMEOUT)
            assert len(second.recv(20)) == 20


@pytest.mark.normative("vu.prog.b10", "vu.prog.b11", "vu.prog.b12")
@pytest.mark.parametrize("others", [[], ["--nonsense", "--fd=x"], ["--socket-path=/proc/no"]])
def test_print_capabilities(others: list[str]) -> None:
    done = subprocess.run(
        [*PROGRAM, *others, "--print-capabilities"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert json.loads(done.stdout) == {"type": "scsi"}
    assert done.stderr == ""


@pytest.mark.normative("vu.prog.b1")
def test_description_file() -> None:
    folder = Path(__file__).parents[3] / "share/qemu/vhost-user"
    description = json.loads((folder / "50-vscsi-emu.json").read_text())
    assert description["type"] == "scsi"
    assert Path(description["binary"]).is_absolute()
    assert Path(description["binary"]).name == "vscsi-emu-vhost-user"
    assert isinstance(description["description"], str)


# ── Bad input ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("vu.prog.b2", "vu.prog.b3")
def test_missing_image(path: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.img"
    assert f"{gone}: no such file" in refused("--socket-path", str(path), "--lun", str(gone))
    assert not path.exists()


def test_image_not_a_multiple_of_the_block_size(path: Path, tmp_path: Path) -> None:
    image = tmp_path / "odd.img"
    image.write_bytes(bytes(1000))
    line = refused("--socket-path", str(path), "--lun", str(image))
    assert "1000 bytes are not a multiple of the block size 512" in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no state file; remove it"),
        (
            '{"format": 1, "sections": {"persistent-reservations": 7}}',
            "saved persistent reservations are damaged.*; remove it",
        ),
    ],
)
def test_a_damaged_state_file(path: Path, tmp_path: Path, content: str, says: str) -> None:
    state = tmp_path / "unit.state"
    state.write_text(content)
    line = refused("--socket-path", str(path), "--lun", f"mem:1M,state={state}")
    assert re.search(f"{state}.*{says}", line)


def test_two_disks_on_one_address(path: Path) -> None:
    line = refused("--socket-path", str(path), "--lun", "1:1=mem:1M", "--lun", "1:1=mem:2M")
    assert "mem:1M is at 1:1 already" in line


def test_unknown_key_and_scheme(path: Path) -> None:
    line = refused("--socket-path", str(path), "--lun", "mem:1M,serail=x")
    assert "unknown key 'serail'" in line
    assert "did you mean 'serial'?" in line
    assert "valid: block-size, bps, bps-burst, cache" in line
    line = refused("--socket-path", str(path), "--lun", "nvme:1M")
    assert "unknown scheme 'nvme'" in line
    assert "known: file, mem, null" in line


@pytest.mark.parametrize("queues", ["0", "-3", "255"])
def test_impossible_queues(path: Path, queues: str) -> None:
    line = refused("--socket-path", str(path), "--lun", "mem:1M", f"--queues={queues}")
    assert f"--queues {queues}: use 1 to 254" in line


def test_a_live_socket_is_refused_and_lives_on(path: Path) -> None:
    with serving("--socket-path", str(path), "--lun", "mem:1M"):
        line = refused("--socket-path", str(path), "--lun", "mem:1M")
        assert f"{path}: a live server listens there" in line
        with connected(path) as connection:
            assert features(connection)


def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    with serving("--socket-path", str(path), "--lun", "mem:1M"), connected(path) as connection:
        assert features(connection)


def test_a_file_is_not_replaced(path: Path) -> None:
    path.write_text("precious")
    line = refused("--socket-path", str(path), "--lun", "mem:1M")
    assert "exists and is not a socket" in line
    assert path.read_text() == "precious"


def test_places_that_take_no_socket(tmp_path: Path) -> None:
    def line(path: str) -> str:
        return refused("--socket-path", path, "--lun", "mem:1M")

    assert f"no directory {tmp_path / 'gone'}; make it first" in line(f"{tmp_path}/gone/s")
    # Nobody may make files in sysfs, root included.
    assert "no permission to make a socket in /sys" in line("/sys/hba.sock")
    assert "longer than the 107 bytes" in line("/" + "x" * 107)


def test_an_image_that_may_not_be_written(path: Path) -> None:
    line = refused("--socket-path", str(path), "--lun", "/sys/kernel/uevent_seqnum")
    assert "may not be written" in line
    assert "add ,ro" in line


def test_an_image_in_use_by_another_server(path: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with serving("--socket-path", str(path), "--lun", str(image)) as (process, _):
        line = refused("--socket-path", f"{path}2", "--lun", str(image))
        assert "in use by" in line
        assert f"pid {process.pid}" in line


@pytest.mark.parametrize("fd", ["77", "0"])
def test_no_socket_behind_fd(fd: str) -> None:
    assert f"--fd {fd}: not" in refused("--fd", fd, "--lun", "mem:1M")


@pytest.mark.normative("vu.prog.b9")
def test_ways_to_listen_exclude_each_other(path: Path) -> None:
    line = refused("--socket-path", str(path), "--fd", "3", "--lun", "mem:1M")
    assert "--socket-path and --fd given; give one of" in line
    assert "nothing given; give one of" in refused("--lun", "mem:1M")


def test_no_disk(path: Path) -> None:
    assert "no disk given; add for example --lun mem:64M" in refused("--socket-path", str(path))


def test_config_file_and_disks_exclude_each_other(tmp_path: Path) -> None:
    file = tmp_path / "hba.toml"
    file.write_text("")
    for extra in (["--lun", "mem:1M"], ["--queues", "2"], ["--passthrough", "all"], ["--force"]):
        assert "go into the file of --config" in refused("--config", str(file), *extra)
    assert f"{file}: no [[hba]] table" in refused("--config", str(file))


def test_several_hbas_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "hba.toml").write_text(
        """
        lun = [{id = "a", uri = "mem:1M"}]
        hba = [{socket = "1.sock", luns = {"0:0" = "a"}}, {socket = "2.sock", luns = {"5:0" = "a"}}]
        """
    )
    with (
        serving("--config", str(tmp_path / "hba.toml")) as (process, _),
        connected(tmp_path / "1.sock") as first,
        connected(tmp_path / "2.sock") as second,
    ):
        assert features(first) == features(second)
        process.terminate()
        assert process.wait(TIMEOUT) == 0
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".sock")]
