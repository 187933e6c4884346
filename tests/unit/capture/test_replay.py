"""replay and plot: a capture against another LUN, and as a picture."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.unit.capture.test_capture import EPOCH, GOOD_READ, capture
from tests.unit.transport.harness import serving
from vscsi_emu.capture.plot import classify
from vscsi_emu.cli.plot import plot
from vscsi_emu.cli.replay import replay as replay_command
from vscsi_emu.config import from_arguments
from vscsi_emu.control.trace import TracedCommand
from vscsi_emu.virtio.scsi import encode_lun

BLOCK = 512
DATA = bytes(range(256)) * 2


def recorded(number: int, cdb: str, **changes: object) -> TracedCommand:
    """The `number`th of a trace with one command each 2 ms."""
    plain = replace(
        GOOD_READ,
        time=EPOCH + number * 2_000_000 + 500_000,
        nanoseconds=500_000,
        lun=encode_lun(3, 2).hex(),
        cdb=bytes.fromhex(cdb).ljust(32, b"\0").hex(),
        data_in_length=0,
        data_in_moved=0,
        data="",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


READS = [
    recorded(n, f"2800{n:08x}00000100", data_in_length=BLOCK, data_in_moved=BLOCK)
    for n in range(10)
]
WRITES = [
    recorded(
        n, f"2a00{n:08x}00000100", data_out_length=BLOCK, data_out_moved=BLOCK, data=DATA.hex()
    )
    for n in range(10, 14)
]


def replay(*arguments: str) -> Result:
    return CliRunner().invoke(replay_command, arguments)


def replayed(*arguments: str) -> Any:
    result = replay(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def disk(tmp_path: Path) -> Path:
    image = tmp_path / "disk.img"
    image.write_bytes(b"\xee" * (1 << 20))
    return image


def test_writes_write_what_was_recorded(tmp_path: Path) -> None:
    image = disk(tmp_path)
    file = capture(tmp_path / "t.pcapng", READS + WRITES)
    answer = replayed(str(file), "--lun", str(image), "--writes", "--speed", "max")
    content = image.read_bytes()
    assert content[10 * BLOCK : 14 * BLOCK] == DATA * 4
    assert content[: 10 * BLOCK] == b"\xee" * 10 * BLOCK
    reads, writes = answer["commands"]
    assert (reads["name"], reads["commands"], reads["different"]) == ("READ(10)", 10, {})
    assert (writes["name"], writes["commands"]) == ("WRITE(10)", 4)
    assert reads["recorded_p50"] == 500_000
    assert 0 < reads["replayed_p50"] < 60e9
    assert (answer["skipped"], answer["without_data"]) == (0, 0)


def test_nothing_is_written_unless_asked_for(tmp_path: Path) -> None:
    image = disk(tmp_path)
    before = image.read_bytes()
    unmap = recorded(20, "42000000000000001800", data_out_length=24, data_out_moved=24)
    unknown = recorded(21, "c1000000000000000000")
    file = capture(tmp_path / "t.pcapng", [*READS, *WRITES, unmap, unknown])
    refused = replay(str(file), "--lun", str(image))
    assert refused.exit_code == 2
    assert "6 of 16 commands may change the disk; add --writes" in refused.output
    assert replayed(str(file), "--lun", str(image), "--skip-writes")["skipped"] == 6
    assert image.read_bytes() == before


def test_another_outcome_is_told(tmp_path: Path) -> None:
    beyond = [replace(READS[0], cdb=READS[0].cdb.replace("280000000000", "28007fffffff"))]
    file = capture(tmp_path / "t.pcapng", READS + beyond)
    answer = replayed(str(file), "--lun", "mem:1M", "--speed", "max")
    [reads] = answer["commands"]
    assert reads["different"] == {"GOOD → CHECK_CONDITION": 1}
    text = replay(str(file), "--lun", "mem:1M", "--speed", "max").output
    assert "READ(10): 1 x GOOD → CHECK_CONDITION\n" in text


def read_with_data(
    number: int, cdb: str, data: bytes, captured: int | None = None
) -> TracedCommand:
    length = len(data)
    return recorded(
        number, cdb, data_in_length=length, data_in_moved=length, data=data[:captured].hex()
    )


def test_other_data_is_told_by_lba(tmp_path: Path) -> None:
    """Blocks of 512 bytes; the disk has its number, or a zero, in each byte of one."""
    image = disk(tmp_path)
    blocks = [bytes([n]) * BLOCK for n in range(256)]
    image.write_bytes(b"".join(blocks))
    wrong = bytes(BLOCK)
    commands = [
        read_with_data(0, "28000000000100000400", blocks[1] + wrong + wrong + blocks[4]),
        read_with_data(1, "880000000000000000090000000100", wrong),
        read_with_data(2, "080000090100", wrong),  # once more
        # READ(6) of 256 blocks, of which a quarter of one was captured.
        read_with_data(3, "080000000000", b"".join(blocks), 128),
        read_with_data(4, "28000000001400000200", wrong * 2, BLOCK + 1),
        # Not compared: no data was captured; another outcome; not a READ.
        *READS[5:7],
        read_with_data(5, "28007fffffff00000100", wrong),
        read_with_data(6, "120000002400", b"\x7f" * 36),
    ]
    file = capture(tmp_path / "t.pcapng", commands)
    answer = replayed(str(file), "--lun", str(image), "--speed", "max")
    assert answer["data"] == {
        "compared": 4 + 1 + 1 + 1 + 2,
        "different": [
            {"lba": 2, "count": 2},
            {"lba": 9, "count": 1},
            {"lba": 20, "count": 2},
        ],
    }
    text = replay(str(file), "--lun", str(image), "--speed", "max").output
    assert "5 blocks were read with other data than recorded: LBA 2 to 3, 9, 20 to 21" in text


def test_the_same_data_is_told(tmp_path: Path) -> None:
    same = read_with_data(0, "28000000000100000200", b"\xee" * 2 * BLOCK)
    file = capture(tmp_path / "t.pcapng", [same])
    text = replay(str(file), "--lun", str(disk(tmp_path)), "--speed", "max").output
    assert "2 blocks were read as recorded" in text
    none = replay(str(capture(tmp_path / "n.pcapng", READS)), "--lun", "mem:1M").output
    assert "blocks were read" not in none


@pytest.mark.parametrize(("speed", "least"), [("1", 0.2), ("10", 0.02), ("max", 0.0)])
def test_the_pace_is_the_recorded_one(tmp_path: Path, speed: str, least: float) -> None:
    from time import monotonic

    from vscsi_emu.capture import replay as module

    seen: list[float] = []
    original = module.Replay._submit

    def submit(self: module.Replay, command: TracedCommand) -> None:
        seen.append(monotonic())
        original(self, command)

    late = [replace(READS[1], time=READS[0].time + 200_000_000)]
    file = capture(tmp_path / "t.pcapng", READS[:1] + late)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Replay, "_submit", submit)
        replayed(str(file), "--lun", "mem:1M", "--speed", speed)
    assert seen[1] - seen[0] >= least * 0.99


def test_a_running_server_can_be_the_target(tmp_path: Path) -> None:
    file = capture(tmp_path / "t.pcapng", READS)
    config = from_arguments(["3:2=mem:1M"], socket=str(tmp_path / "hba.sock"))
    with serving(config) as server:
        answer = replayed(str(file), "--socket", server.sockets[0], "--speed", "max")
    [reads] = answer["commands"]
    assert (reads["commands"], reads["different"]) == (10, {})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "one of --lun and --socket"),
        (["--lun", "mem:1M", "--of", "1:1"], "it has those of 3:2, 4:0"),
        (["--lun", "mem:1M"], "choose one by --of"),
        (["--lun", "nope:1M", "--of", "3:2"], "nope"),
        (["--lun", "mem:1M", "--of", "3:2", "--speed", "0"], "neither max nor a number"),
        (["--socket", "/nonexistent/s", "--of", "3:2"], "No such file"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, arguments: list[str], text: str) -> None:
    other = replace(READS[0], lun=encode_lun(4, 0).hex())
    file = capture(tmp_path / "t.pcapng", [*READS, other])
    result = replay(str(file), *arguments)
    assert result.exit_code != 0
    assert text in result.output
    assert "Traceback" not in result.output


# ── Pictures ───────────────────────────────────────────────────────────────────────────────────


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    failed = recorded(30, "28007fffffff00000100", status=2, data_in_length=BLOCK)
    file = capture(tmp_path / "t.pcapng", [*READS, *WRITES, failed, recorded(31, "000000000000")])
    out = tmp_path / "x.png"
    result = CliRunner().invoke(plot, [str(file), "-o", str(out)])
    assert result.exit_code == 0, result.output
    image = out.read_bytes()
    assert image.startswith(b"\x89PNG")
    width, height = int.from_bytes(image[16:20]), int.from_bytes(image[20:24])
    assert (width, height) == (900, 600)


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    file = capture(tmp_path / "t.pcapng", READS)
    result = CliRunner().invoke(plot, [str(file), "-o", str(tmp_path / "x.png")])
    assert result.exit_code == 1
    assert "pip install 'vscsi-emu[plot]'" in result.output


def test_commands_are_placed_by_class_and_lba() -> None:
    assert classify(READS[7]) == ("read", 7)
    assert classify(WRITES[0]) == ("write", 10)
    assert classify(recorded(0, "000000000000")) == ("other", None)
    assert classify(recorded(0, "c10000000000")) == ("other", None)
