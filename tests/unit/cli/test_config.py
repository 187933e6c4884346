"""``hba.toml`` and the command line's shorthand for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vscsi_emu.config import MAX_HBAS, ConfigError, from_arguments, from_file
from vscsi_emu.inprocess import InProcess
from vscsi_emu.service import StartError


def addresses(*luns: str) -> dict[tuple[int, int], str]:
    """Which unit is where."""
    config = from_arguments(luns, socket="/run/hba.sock")
    specs = {lun.name: str(lun.spec) for lun in config.luns}
    return {at: specs[name] for at, name in config.hbas[0].luns.items()}


def test_disks_without_an_address_become_lun_0_of_one_target_each() -> None:
    assert addresses("a", "b", "c") == {(0, 0): "a", (1, 0): "b", (2, 0): "c"}


def test_a_given_address_is_left_out() -> None:
    assert addresses("a", "1:0=b", "0:1=c", "d") == {
        (0, 0): "a",
        (1, 0): "b",
        (0, 1): "c",
        (2, 0): "d",
    }


def test_256_targets_and_no_more() -> None:
    assert len(addresses(*["mem:1M"] * 256)) == 256
    with pytest.raises(ConfigError, match="no target is free"):
        addresses(*["mem:1M"] * 257)


def test_two_disks_on_one_address() -> None:
    with pytest.raises(ConfigError, match=r"--lun 3:2=b: a is at 3:2 already"):
        addresses("3:2=a", "3:2=b")


@pytest.mark.parametrize("queues", [0, -1, 255])
def test_queues_out_of_range(queues: int) -> None:
    with pytest.raises(ConfigError, match=f"--queues {queues}: use 1 to 254"):
        from_arguments(["a"], socket="/s", queues=queues)


def test_names_are_stable_and_differ_between_servers() -> None:
    def names(socket: str) -> list[str]:
        return [lun.name for lun in from_arguments(["mem:1M"] * 2, socket=socket).luns]

    assert names("/a") == names("/a")
    assert len({*names("/a"), *names("/b")}) == 4


# ── hba.toml ────────────────────────────────────────────────────────────────────────────────────

GOOD = """
[[lun]]
id = "root"
uri = "disk.img"
block-size = 4096
ro = true

[[lun]]
id = "scratch"
uri = "mem:64M"

[[hba]]
socket = "a.sock"
queues = 4
luns = {"0:0" = "root", "3:2" = "scratch"}

[[hba]]
socket = "/run/b.sock"
luns = {"0:0" = "root"}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "hba.toml"
    path.write_text(text)
    return str(path)


def test_a_unit_may_be_reached_through_several_hbas(tmp_path: Path) -> None:
    config = from_file(write(tmp_path, GOOD))
    root, scratch = config.luns
    assert root.spec.location == str(tmp_path / "disk.img"), "relative to the file"
    assert (root.spec.block_size, root.spec.read_only) == (4096, True)
    assert str(scratch.spec) == "mem:64M"
    first, second = config.hbas
    assert (first.socket, first.queues) == (str(tmp_path / "a.sock"), 4)
    assert (second.socket, second.queues) == ("/run/b.sock", 1)
    assert first.luns == {(0, 0): root.name, (3, 2): scratch.name}
    assert second.luns == {(0, 0): root.name}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('id = "root"', "", r"\[\[lun\]\] number 1: id: is missing"),
        ('id = "root"', "id = 5", r"\[\[lun\]\] number 1: id: is no text"),
        ('id = "scratch"', 'id = "root"', r"\[\[lun\]\] 'root': id: is given twice"),
        ('uri = "mem:64M"', "", r"\[\[lun\]\] 'scratch': uri: is missing"),
        ('uri = "mem:64M"', 'uri = "men:64M"', r"'scratch': uri: unknown scheme 'men'.*'mem'"),
        ("block-size", "blok-size", r"'root': blok-size: unknown key.*did you mean 'block-size'"),
        ("4096", "1024", r"'root': block-size: .*'1024' is not a block size"),
        ("queues = 4", "queues = 0", r"\[\[hba\]\] 'a.sock': queues 0: use 1 to 254"),
        ("queues = 4", 'queues = "4"', r"'a.sock': queues: '4' is not a whole number"),
        ("queues = 4", "queues = true", r"'a.sock': queues: True is not a whole number"),
        ("queues = 4", "quues = 4", r"'a.sock': quues: is unknown \(did you mean 'queues'\?\)"),
        ('socket = "a.sock"', "", r"\[\[hba\]\] number 1: socket: is missing"),
        ('"/run/b.sock"', '"a.sock"', r"two \[\[hba\]\] tables have socket"),
        (
            '"scratch"}',
            '"scrach"}',
            r"luns: no \[\[lun\]\] has id 'scrach' \(did you mean 'scratch'",
        ),
        ('"3:2"', '"3"', r"'a.sock': luns: '3' is not TARGET:LUN"),
        ('"3:2"', '"256:0"', r"'a.sock': luns: target 256 is above 255"),
        ('"3:2"', '"00:0"', r"'a.sock': luns: 0:0 is given twice"),
        ('luns = {"0:0" = "root"}', "", r"'/run/b.sock': luns: is no table"),
        ("queues = 4", 'initiator = "5x"', r"'a.sock': initiator: '5x' is not 16 hex digits"),
        ("queues = 4", 'initiator = "1000000000000000"', r"start with 2, 3 or 5"),
        ("queues = 4", "port-group = 0", r"'a.sock': port-group: 0 is not a whole number from 1"),
        ("queues = 4", "port-group = true", r"port-group: True is not a whole number"),
        ('[[hba]]\nsocket = "/run', '[[hbaa]]\nsocket = "/run', r"hbaa: is unknown.*'hba'"),
        ("[[lun]]", "[[lun]", r"hba\.toml: "),
    ],
)
def test_errors_name_file_table_and_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    with pytest.raises(ConfigError, match=says) as caught:
        from_file(write(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "hba.toml"))


def test_single_brackets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"write \[\[hba\]\], with two brackets"):
        from_file(write(tmp_path, '[hba]\nsocket = "s"\n'))


def test_no_hba(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \[\[hba\]\] table"):
        from_file(write(tmp_path, ""))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: No such file"):
        from_file(str(tmp_path / "gone.toml"))


def test_port_groups(tmp_path: Path) -> None:
    hbas = from_file(write(tmp_path, GOOD.replace("queues = 4", "port-group = 65535"))).hbas
    assert [hba.port_group for hba in hbas] == [65535, None]


def test_initiators_must_differ(tmp_path: Path) -> None:
    text = GOOD.replace("queues = 4", 'initiator = "500000000000000A"')
    second = 'initiator = "500000000000000a"\n'
    text = text.replace('socket = "/run', second + 'socket = "/run')
    with pytest.raises(ConfigError, match=r"two \[\[hba\]\] tables have initiator"):
        from_file(write(tmp_path, text))


def test_a_state_file_is_relative_to_the_file(tmp_path: Path) -> None:
    text = GOOD.replace('uri = "mem:64M"', 'uri = "mem:64M"\nstate = "kept"')
    assert from_file(write(tmp_path, text)).luns[1].spec.state == str(tmp_path / "kept")


def test_too_many_hbas(tmp_path: Path) -> None:
    hbas = "".join(
        f'[[hba]]\nsocket = "s{n}"\nluns = {{"0:0" = "root"}}\n' for n in range(MAX_HBAS - 1)
    )
    with pytest.raises(ConfigError, match=r"256 .*use at most 255"):
        from_file(write(tmp_path, GOOD + hbas))


@pytest.mark.parametrize("name", ["max-sectors", "seg-max", "cmd-per-lun"])
def test_limits_are_lowered_and_never_raised(name: str) -> None:
    field = name.replace("-", "_")
    with InProcess(from_arguments(["mem:1M"], caps={name: 17})) as machine:
        assert getattr(machine.slots[0].hba.config, field) == 17
    with pytest.raises(StartError, match=f"{name} 65536 is above"):
        InProcess(from_arguments(["mem:1M"], caps={name: 65536})).__enter__()
    with pytest.raises(ConfigError, match="use 1 or more"):
        from_arguments(["mem:1M"], caps={name: 0})
