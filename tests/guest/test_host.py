"""`devices` and `probe` on a real kernel whose SCSI host is scsi_debug: what they say agrees with
sysfs and with the parameters that the module was loaded with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from . import debug_host
from .report import Section

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

GIB = 1 << 30

# Parameters of scsi_debug → what a probe of its disk must say.
DISKS: Mapping[str, tuple[str, dict[str, int]]] = {
    "plain": ("dev_size_mb=16", {"size": 16 << 20, "block_size": 512, "cmd_per_lun": 192}),
    "shallow": ("dev_size_mb=8 max_queue=1", {"size": 8 << 20, "cmd_per_lun": 1}),
    # OPTIMAL TRANSFER LENGTH is what sd takes for max_sectors_kb.
    "optimal": (
        "dev_size_mb=8 max_queue=7 opt_blks=64 opt_xferlen_exp=3 lbpu=1",
        {"cmd_per_lun": 7, "max_sectors": 64},
    ),
    "blocks_of_4096": (
        "dev_size_mb=8 sector_size=4096 opt_blks=256 opt_xferlen_exp=8 virtual_gb=3",
        {"size": 3 * GIB, "block_size": 4096, "max_sectors": 256 * 4096 // 512},
    ),
}
TYPES = {1: "tape", 5: "cd/dvd", 7: "optical", 13: "enclosure"}

# One process for all attributes: starting one is slow here. "queue/max_segments:2048" …
SYSFS = """
attributes() {
    (cd /sys/bus/scsi/devices/0:0:0:0/block/*/ && grep -s . queue/*)
    (cd /sys/class/scsi_host && grep -s . host0/*)
    (cd /sys/bus/scsi/devices && grep . 0:0:0:0/queue_depth 0:0:0:0/timeout)
}
"""
EMPTY = """
section none vscsi_emu devices
section none_json vscsi_emu devices --json
section none_probed vscsi_emu probe /dev/sg0
"""
LOWERED = """
scsi_debug dev_size_mb=16
cd /sys/bus/scsi/devices/0:0:0:0; queue=$(echo block/*/queue)
echo 4 >$queue/max_sectors_kb; echo 3 >queue_depth; echo 17 >timeout
section lowered vscsi_emu probe /dev/sda --json
"""
USED = """
scsi_debug dev_size_mb=16 num_tgts=2 num_parts=1
mkfs.ext4 -q /dev/sda1 2>/dev/null && mount /dev/sda1 /tmp/mnt
mkswap /dev/sdb1 >/dev/null && swapon /dev/sdb1
sleep 60 </dev/sg1 & sleeper=$!
section used vscsi_emu devices --json
section partition vscsi_emu probe /dev/sda1
umount /tmp/mnt; swapoff /dev/sdb1
mknod /tmp/any b 8 0
section other_node vscsi_emu probe /tmp/any
section nobody setpriv --reuid 65534 --regid 65534 --clear-groups \
    {python} -m vscsi_emu probe /dev/sda --json
chgrp disk /dev/sda; chmod 660 /dev/sda
section in_group setpriv --reuid 65534 --regid 65534 --groups disk \
    {python} -m vscsi_emu probe /dev/sda --json
kill $sleeper
"""
WATCHED = """
scsi_debug dev_size_mb=16
vscsi_emu devices --watch --json >/tmp/seen &
watcher=$!
seen() {{ n=0; until grep -q "$@" /tmp/seen || [ $n -ge 600 ]; do sleep 0.05; n=$((n + 1)); done; }}
seen present
echo 1 >/sys/bus/pseudo/drivers/scsi_debug/add_host
seen '"changed".*"block"'
cd /sys/bus/scsi/devices/1:0:0:0
echo 2 >/sys/bus/pseudo/drivers/scsi_debug/virtual_gb; echo 1 >rescan
seen '"changed": *\\[[^]]*"size"'
cd /; echo 1 >/sys/bus/scsi/devices/1:0:0:0/delete
seen removed
kill $watcher
section watched cat /tmp/seen
"""


@cache
def ran() -> Mapping[str, Section]:
    """One boot for all."""
    body = [SYSFS, EMPTY]
    for name, (parameters, _) in DISKS.items():
        body += [
            f"scsi_debug {parameters}",
            f"section {name} vscsi_emu probe /dev/sg0 --json",
            f"section {name}_sysfs attributes",
        ]
    for number, name in TYPES.items():
        name = name.replace("/", "_")
        body += [
            f"scsi_debug ptype={number} dev_size_mb=8",
            f"section {name} vscsi_emu probe wwn-0x33333330000007d0 --json",
        ]
    body += [LOWERED, USED.format(python=debug_host.PYTHON), WATCHED.format()]
    return debug_host.run("\n".join(body), 200)


def probed(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ran()[name].check())
    return found


def attributes(name: str) -> dict[str, str]:
    lines = ran()[f"{name}_sysfs"].check().splitlines()
    return {key: value for key, _, value in (line.partition(":") for line in lines)}


def test_a_machine_without_scsi() -> None:
    assert ran()["none"].check() == "This machine has no SCSI devices.\n"
    assert json.loads(ran()["none_json"].check()) == []
    refused = ran()["none_probed"]
    assert refused.exit_code == 1
    assert refused.output == "Error: /dev/sg0: this machine has no SCSI devices\n"


@pytest.mark.parametrize("name", DISKS)
def test_a_probe_agrees_with_what_scsi_debug_was_told(name: str) -> None:
    found = probed(name)
    limits = {key: limit["value"] for key, limit in found["limits"].items()}
    for key, value in DISKS[name][1].items():
        assert (limits | found["device"])[key] == value, key


@pytest.mark.parametrize("name", DISKS)
def test_a_probe_agrees_with_sysfs_and_the_nodes(name: str) -> None:
    found, shown = probed(name), attributes(name)
    for limit in found["limits"].values():
        for candidate in limit["candidates"]:
            if candidate["source"] in shown:
                scale = 2 if candidate["source"].endswith("_kb") else 1
                assert candidate["value"] == int(shown[candidate["source"]]) * scale, candidate
    sectors = found["limits"]["max_sectors"]
    said = {c["source"].split()[0]: c["value"] for c in sectors["candidates"] if c["binds"]}
    soft = int(shown["queue/max_sectors_kb"]) * 2
    assert said["BLKSECTGET"] == said["SG_GET_RESERVED_SIZE"] == soft
    assert "MAXIMUM" in said  # so `sgio` read the page
    assert sectors["value"] == min(said.values())
    assert {"queue/max_sectors_kb", "queue/max_hw_sectors_kb"} <= said.keys()


@pytest.mark.parametrize("name", DISKS)
def test_a_guest_is_told_the_limits(name: str) -> None:
    found = probed(name)
    limits = {key: limit["value"] for key, limit in found["limits"].items()}
    space, page = found["config"], bytes.fromhex(found["block_limits"])
    assert space["max_sectors"] == min(0xFFFF, limits["max_sectors"])
    assert space["cmd_per_lun"] == min(128, limits["cmd_per_lun"])
    assert space["seg_max"] == min(126, limits["seg_max"])
    blocks = limits["max_sectors"] * 512 // found["device"]["block_size"]
    assert int.from_bytes(page[8:12], "big") == blocks
    assert int.from_bytes(page[12:16], "big") <= blocks
    assert f"max_sectors={space['max_sectors']},cmd_per_lun={space['cmd_per_lun']}" in found["qemu"]


def test_root_goes_through_the_block_node_and_lacks_nothing() -> None:
    found = probed("plain")
    assert (found["way"]["interface"], found["way"]["node"]) == ("block", "/dev/sda")
    assert found["access"] == {"granted": True, "raw_io": True, "missing": []}


@pytest.mark.parametrize("name", TYPES.values())
def test_types(name: str) -> None:
    found = probed(name.replace("/", "_"))
    assert found["device"]["type"] == name
    has_blocks = name in ("cd/dvd", "optical")
    assert (found["block_limits"] is not None) == has_blocks
    assert found["way"]["interface"] == ("block" if has_blocks else "sg")
    if name == "tape":
        assert "/dev/nst0" in found["device"]["other_nodes"]


def test_limits_lowered_through_sysfs_show_up() -> None:
    limits = probed("lowered")["limits"]
    assert (limits["max_sectors"]["value"], limits["max_sectors"]["source"]) == (
        8,
        "queue/max_sectors_kb",
    )
    assert (limits["cmd_per_lun"]["value"], limits["timeout"]["value"]) == (3, 17)


def test_users_are_named() -> None:
    first, second = (device["use"] for device in json.loads(ran()["used"].check()))
    assert (first["mounts"], first["swaps"], first["exclusive"]) == (["/tmp/mnt"], [], True)
    assert (second["mounts"], second["swaps"], second["exclusive"]) == ([], ["/dev/sdb1"], True)
    assert (first["taken"], second["taken"]) == (True, True)
    assert [process.split(" ")[0] for process in second["processes"]] == ["sleep"]
    assert first["processes"] == []


def test_a_partition_is_refused_another_node_of_a_disk_is_not() -> None:
    refused = ran()["partition"]
    assert refused.exit_code == 1
    assert "/dev/sda1 is a partition; SCSI commands reach the whole disk" in refused.output
    assert "0:0:0:0" in ran()["other_node"].check()


def test_missing_rights_are_named() -> None:
    nobody = probed("nobody")["access"]
    assert (nobody["granted"], nobody["raw_io"]) == (False, False)
    rule, capability = nobody["missing"]
    assert rule.startswith("a udev rule: /dev/sda is rw-------, group root")
    assert 'ATTRS{wwid}=="naa.33333330000007d0", GROUP="disk"' in rule
    assert capability.startswith("CAP_SYS_RAWIO: ")
    member = probed("in_group")["access"]
    assert (member["granted"], member["raw_io"]) == (True, False)
    assert len(member["missing"]) == 1


def test_a_watcher_sees_devices_come_grow_and_go() -> None:
    events = [json.loads(line) for line in ran()["watched"].check().splitlines()]
    assert [e["event"] for e in events if e["device"]["address"] == "0:0:0:0"] == ["present"]
    added = [e for e in events if e["device"]["address"] == "1:0:0:0"]
    assert added[0]["event"] == "added"
    assert added[-1]["event"] == "removed"
    grown = [e["device"]["size"] for e in added if "size" in e["changed"]]
    assert grown[-1] == 2 * GIB
    assert "CAPACITY_DATA_HAS_CHANGED" in [e["attention"] for e in added]
