"""What a fault makes of a medium."""

from __future__ import annotations

from typing import Any

import pytest

from vscsi_emu._dataplane import MAX_WEAR_UNITS
from vscsi_emu.faults import KINDS, Fault, FaultError
from vscsi_emu.faults.vocabulary import Medium, rules_of

MIB = 1 << 20
DISK = Medium(block_size=512, blocks=1 << 15, passthrough=False)
HOST_DISK = Medium(block_size=512, blocks=1 << 15, passthrough=True)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_done_on_a_device_of_the_host_or_refused(kind: str) -> None:
    fields: dict[str, Any] = {"kind": kind}
    if KINDS[fields["kind"]].hosts:
        assert rules_of(Fault(**fields), HOST_DISK) == rules_of(Fault(**fields), DISK)
        return
    assert len(rules_of(Fault(**fields), DISK)) == 1
    with pytest.raises(FaultError, match="is not for devices of the host") as caught:
        rules_of(Fault(**fields), HOST_DISK)
    assert caught.value.parameter == "kind"


@pytest.mark.parametrize(
    ("medium", "fields", "blocks", "unit"),
    [
        (DISK, {}, (0, DISK.blocks - 1), MIB // 512),
        (Medium(4096, 1 << 20, False), {}, (0, (1 << 20) - 1), MIB // 4096),
        (DISK, {"unit": 3, "lba": 5, "blocks": 7}, (5, 11), 3),
        # Never more units than can be counted.
        (Medium(512, 1 << 33, False), {}, (0, (1 << 33) - 1), (1 << 33) // MAX_WEAR_UNITS),
        (Medium(2 * MIB, 10, False), {}, (0, 9), 1),
    ],
)
def test_erase_units(
    medium: Medium, fields: dict[str, Any], blocks: tuple[int, int], unit: int
) -> None:
    [rule] = rules_of(Fault(kind="wear-out", writes=3, **fields), medium)
    assert rule["blocks"] == blocks
    assert rule["wear"] == (unit, 3, 1)


def test_a_medium_without_blocks_does_not_wear() -> None:
    with pytest.raises(FaultError, match="units with blocks"):
        rules_of(Fault(kind="wear-out"), Medium(512, 0, True))
