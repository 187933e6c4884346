"""The ``--lun`` grammar."""

from __future__ import annotations

import pytest

from vscsi_emu.backends.uri import LunSpec, SpecError, parse_lun, parse_size


@pytest.mark.parametrize(
    ("text", "address", "spec"),
    [
        ("disk.img", None, LunSpec("file", "disk.img")),
        ("/dev/sdb", None, LunSpec("file", "/dev/sdb")),
        ("file:a:b.img", None, LunSpec("file", "a:b.img")),
        ("a,,b.img,ro", None, LunSpec("file", "a,b.img", read_only=True)),
        ("3:2=mem:256M,block-size=4096", (3, 2), LunSpec("mem", "256M", block_size=4096)),
        ("255:16383=null:1T", (255, 16383), LunSpec("null", "1T")),
        ("x=y.img", None, LunSpec("file", "x=y.img")),
        ("d,ro=off", None, LunSpec("file", "d")),
        (
            "d,serial=S,,1,vendor=V,product=P q,wwn=naa.5000C50015EA71AC",
            None,
            LunSpec("file", "d", serial="S,1", vendor="V", product="P q", naa="5000c50015ea71ac"),
        ),
        (
            "d,cache=writethrough,discard=off,rotation-rate=7200",
            None,
            LunSpec("file", "d", write_cache=False, discard=False, rotation_rate=7200),
        ),
        (
            "d,lbprz=on,removable,physical-block-size=4k",
            None,
            LunSpec("file", "d", lbprz=True, removable=True, physical_block_size=4096),
        ),
        (
            "d,thin=4M,pool=p,soft-threshold=90",
            None,
            LunSpec("file", "d", thin=4 << 20, pool="p", soft_threshold=90),
        ),
        ("d,direct=on", None, LunSpec("file", "d", extra={"direct": "on"})),
        ("d,wwn=" + "6" + "0" * 31, None, LunSpec("file", "d", naa="6" + "0" * 31)),
    ],
)
def test_what_is_meant(text: str, address: tuple[int, int] | None, spec: LunSpec) -> None:
    assert parse_lun(text) == (address, spec)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nul:1G", "unknown scheme 'nul'.*did you mean 'null'.*file, mem, null"),
        ("http://x", "unknown scheme 'http'"),
        ("mem:", "names nothing"),
        ("", "names nothing"),
        ("256:0=d", "target 256 is above 255"),
        ("0:16384=d", "LUN 16384 is above 16383"),
        (
            "d,blok-size=512",
            "unknown key 'blok-size'.*did you mean 'block-size'.*valid: block-size",
        ),
        ("mem:1M,direct=on", "unknown key 'direct'"),
        ("d,", "unknown key ''"),
        ("d,serial", "key 'serial' needs a value"),
        ("d,direct", "key 'direct' needs a value"),
        ("d,thin=0", "thin: '0' is not a size"),
        ("d,pool=", "pool: names no pool"),
        ("d,soft-threshold=101", "soft-threshold: '101' is not a percentage from 1 to 100"),
        ("d,block-size=1024", "block-size: '1024' is not a block size; use 512 or 4096"),
        ("d,physical-block-size=3000", "'3000' is not a power of two from 512 to 1048576"),
        ("d,ro=yes", "ro: 'yes' is neither on nor off"),
        ("d,cache=none", "cache: 'none' is neither writeback nor writethrough"),
        ("d,wwn=123", "wwn: '123' is not an NAA name"),
        ("d,wwn=1000000000000000", "is not an NAA name"),
        ("d,wwn=6000000000000000", "is not an NAA name"),
        ("d,serial=" + "x" * 37, "serial: .* 1 to 36 printable"),
        ("d,vendor=123456789", "vendor: .* 1 to 8 printable"),
        ("d,vendor=", "vendor: .* 1 to 8 printable"),
        ("d,product=é", "product: .* 1 to 16 printable"),
        ("d,rotation-rate=2", "rotation-rate: '2' is not"),
        ("d,rotation-rate=65535", "rotation-rate: '65535' is not"),
        ("d,rotation-rate=x", "rotation-rate: 'x' is not"),
    ],
)
def test_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse_lun(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("64k", 64 << 10),
        ("64M", 64 << 20),
        ("64MiB", 64 << 20),
        ("3g", 3 << 30),
        ("3T", 3 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0M", "-1", "1.5G", "12X", "M", "0x10", "٣"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(SpecError, match="not a size"):
        parse_size(text)
