"""The hostile device over vhost-user: what front ends and drivers are told there, and what comes of
it. What lies in registers is tests/unit/driver/test_hostile_device.py's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.unit.transport.harness import TIMEOUT, Server, attached, serving
from vscsi_emu.config import from_arguments
from vscsi_emu.driver.disk import Disk
from vscsi_emu.driver.front_end import FrontEnd
from vscsi_emu.driver.virtio_scsi import ProbeError
from vscsi_emu.hba import DEVICE_FEATURES
from vscsi_emu.hostile import BEHAVIOURS, Behaviour, Hostility, Place
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.config import SIZE

PATIENCE = 0.5
"""Seconds for what never comes."""
RINGS = [each for each in BEHAVIOURS.values() if each.place is Place.RING]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(from_arguments(["0:0=mem:1M"], socket=str(tmp_path / "hba.sock"))) as running:
        yield running


def choose(server: Server, name: str, seed: int = 1, *, armed: bool = True) -> Hostility:
    hostility = Hostility([name], seed=seed, armed=armed)
    server.do(lambda: setattr(server.hba, "hostility", hostility))
    return hostility


def use(server: Server, hostility: Hostility, patience: float = TIMEOUT) -> None:
    with attached(server.sockets[0], timeout=patience) as device:
        disk = Disk(device, 0, 0)
        hostility.arm()
        for number in range(8):
            data = bytes([number + 1]) * 4096
            disk.write(8 * number, data)
            assert disk.read(8 * number, 8) == data


def test_offered_features_flip_between_reads(server: Server) -> None:
    with FrontEnd.connect(server.sockets[0]) as front_end:
        honest = front_end.get_u64(vu.GET_FEATURES)
        hostility = choose(server, "features-flip")
        seen = [front_end.get_u64(vu.GET_FEATURES) for _ in range(20)]
    missing = [honest & ~features for features in seen]
    assert all(bits.bit_count() == 1 and bits & DEVICE_FEATURES for bits in missing)
    assert all(one != other for one, other in pairwise(missing))
    assert all(features & vu.F_PROTOCOL_FEATURES for features in seen), "of the transport"
    assert hostility.done == 20


def test_a_seed_flips_the_same_features_again(server: Server) -> None:
    def flipped(seed: int) -> list[int]:
        choose(server, "features-flip", seed)
        return [front_end.get_u64(vu.GET_FEATURES) for _ in range(10)]

    with FrontEnd.connect(server.sockets[0]) as front_end:
        assert flipped(1) == flipped(1) != flipped(2)


def test_a_driver_goes_on_without_a_feature_that_it_does_not_see(server: Server) -> None:
    """It reads them once a connection."""
    for seed in range(6):
        hostility = choose(server, "features-flip", seed)
        use(server, hostility)
        assert hostility.done == 1


def test_the_configuration_space_changes_between_reads(server: Server) -> None:
    with FrontEnd.connect(server.sockets[0]) as front_end:
        front_end.negotiate_protocol(vu.ProtocolFeature.CONFIG)
        honest = front_end.get_config(0, SIZE)
        hostility = choose(server, "config-changes")
        seen = [front_end.get_config(0, SIZE) for _ in range(5)]
        assert len({honest, *seen}) == 6
        assert all(len(data) == SIZE for data in seen)
        hostility.armed = False
        assert front_end.get_config(0, SIZE) == honest


def test_a_driver_refuses_numbers_that_it_cannot_work_with(server: Server) -> None:
    for seed in range(3):
        hostility = choose(server, "config-changes", seed)
        with pytest.raises(ProbeError, match="is not within"):
            use(server, hostility)
        assert hostility.done == 1


def test_an_interrupt_storm_is_borne(server: Server) -> None:
    hostility = choose(server, "interrupt-storm")
    while hostility.done < 100:
        use(server, hostility)


@pytest.mark.parametrize("behaviour", RINGS, ids=lambda each: each.name)
def test_a_driver_notices_what_rings_do_wrong(server: Server, behaviour: Behaviour) -> None:
    kind, _, text = behaviour.driver.partition(": ")
    hostility = choose(server, behaviour.name, armed=False)
    patience = PATIENCE if kind == "TimeoutError" else TIMEOUT
    with pytest.raises((RuntimeError, TimeoutError), match=text) as caught:
        use(server, hostility, patience)
    assert type(caught.value).__name__ == kind
    assert hostility.done


def test_what_is_of_registers_does_nothing_here(server: Server) -> None:
    """The front end resets."""
    for behaviour in BEHAVIOURS.values():
        if behaviour.place is Place.RESET:
            hostility = choose(server, behaviour.name)
            use(server, hostility)
            assert hostility.done == 0
