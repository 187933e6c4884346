"""``thin=``, ``pool=`` and ``soft-threshold=``."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from vscsi_emu.backends import Backend, SpecError, open_backend
from vscsi_emu.backends.uri import parse_lun
from vscsi_emu.scsi.provisioning import ThinSpace

PAGE = 4096


def opened(text: str) -> Backend:
    return open_backend(parse_lun(text)[1], name=text)


def space(backend: Backend) -> ThinSpace:
    assert backend.thin is not None
    return backend.thin


def test_without_a_limit() -> None:
    assert opened("mem:1M").thin is None


def test_a_unit_of_its_own() -> None:
    one, two = opened("mem:1M,thin=64k"), opened("mem:1M,thin=64k,soft-threshold=7")
    assert space(one).space.limit == 64 << 10
    assert space(one).pool is None
    assert (space(one).soft_threshold, space(two).soft_threshold) == (80, 7)
    assert space(one).space is not space(two).space


def test_units_of_a_pool_share_it_while_one_of_them_lives() -> None:
    one, two = opened("mem:1M,thin=64k,pool=a"), opened("mem:2M,thin=64k,pool=a")
    other = opened("mem:1M,thin=64k,pool=b")
    assert space(one).space is space(two).space is not space(other).space
    assert space(one).pool == space(two).pool != space(other).pool
    assert (space(one).pool or b"")[0] >> 4 == 3
    with pytest.raises(SpecError, match="pool 'a' has 65536 bytes already; give each"):
        opened("mem:1M,thin=32k,pool=a")
    del one, two
    gc.collect()
    assert space(opened("mem:1M,thin=32k,pool=a")).space.limit == 32 << 10


def test_what_a_file_holds_already(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"x" * PAGE + bytes(2 * PAGE))
    with image.open("r+b") as file:
        file.truncate(100 * PAGE)
    backend = opened(f"{image},thin=8k")
    try:
        assert space(backend).space.used == 3 * PAGE
        assert backend.engine.allocated == 3 * PAGE
    finally:
        backend.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("thin=1M,discard=off", "thin= needs space that can be freed; leave it out here"),
        ("thin=1M,ro", "thin= needs space that can be freed; leave it out here"),
        ("pool=p", "pool 'p' needs its size; add thin=SIZE"),
        ("soft-threshold=5", "soft-threshold needs a space to be a part of; add thin=SIZE"),
    ],
)
def test_what_cannot_be(tmp_path: Path, options: str, says: str) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(PAGE))
    with pytest.raises(SpecError, match=says):
        opened(f"{image},{options}")
    # Nothing is left locked.
    opened(str(image)).close()
