"""Backend ``sg:`` where there is no device: what is wrong with a specification is said first. The
rest needs a kernel's sg driver: tests/guest/test_passthrough.py."""

from __future__ import annotations

import pytest

from vscsi_emu.backends import BackendError, SpecError, open_backend
from vscsi_emu.backends.uri import parse_lun


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("passthrough=most", "none of readonly, safe, all"),
        ("passthrough=safe,ro", "contradict"),
        ("volatile-cache", "a power of its own"),
        ("force=yes", "force: 'yes' is neither on nor off"),
    ],
)
def test_wrong_options(options: str, message: str) -> None:
    _, spec = parse_lun(f"sg:/dev/sg0,{options}")
    with pytest.raises(SpecError, match=message):
        open_backend(spec, name="x")


@pytest.mark.parametrize("name", ["/dev/null", "wwn-0x5000000000000001", "by-id/none", "9:9:9:9"])
def test_no_such_device(name: str) -> None:
    _, spec = parse_lun(f"sg:{name}")
    with pytest.raises(BackendError, match=f"sg:{name}"):
        open_backend(spec, name="x")
