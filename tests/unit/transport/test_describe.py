"""What a guest is told, as dtc, fdtoverlay and an independent reader of trees see it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import fdt
import pytest

from vscsi_emu.transport.describe import MmioInstance, consecutive, kernel_parameters, overlay, tree

HIGH = MmioInstance(base=0x12_3456_7000, irq=40, size=0x1000)
BASE_TREE = """/dts-v1/;
/ {
    #address-cells = <2>;
    #size-cells = <2>;
    interrupt-parent = <&gic>;
    gic: interrupt-controller@8000000 {
        compatible = "arm,cortex-a15-gic";
        reg = <0 0x8000000 0 0x10000>, <0 0x8010000 0 0x10000>;
        interrupt-controller;
        #address-cells = <0>;
        #interrupt-cells = <3>;
    };
};
"""


def quietly(*command: str | Path) -> bytes:
    """Standard output of a command that must not complain."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed (Debian: device-tree-compiler)")
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout


def words(properties: fdt.FDT, path: str, name: str) -> list[int]:
    return list(properties.get_property(name, path).data)


def has(properties: fdt.FDT, path: str, name: str) -> bool:
    return bool(properties.exist_property(name, path))


@pytest.mark.parametrize("coherent", [True, False])
def test_dtc_reads_the_source_without_a_warning_and_finds_the_device(
    tmp_path: Path, coherent: bool
) -> None:
    source = tmp_path / "guest.dts"
    instance = MmioInstance(HIGH.base, HIGH.irq, HIGH.size, coherent)
    source.write_text(tree([instance]).to_dts())
    read = fdt.parse_dtb(quietly("dtc", "-I", "dts", "-O", "dtb", source))

    device = "/virtio_mmio@1234567000"
    assert read.get_property("compatible", device).value == "virtio,mmio"
    assert words(read, device, "reg") == [0x12, 0x3456_7000, 0, 0x1000]
    assert words(read, device, "interrupts") == [0, 40, 4]
    assert has(read, device, "dma-coherent") == coherent


def test_the_blob_says_what_the_source_says(tmp_path: Path) -> None:
    made = tree(consecutive(HIGH, 3))
    blob, source = tmp_path / "a.dtb", tmp_path / "a.dts"
    blob.write_bytes(made.to_dtb())
    source.write_text(made.to_dts())
    assert quietly("dtc", "-s", "-O", "dts", "-I", "dtb", blob) == quietly(
        "dtc", "-s", "-O", "dts", "-I", "dts", source
    )


def test_an_overlay_applies_and_its_interrupts_find_the_controller(tmp_path: Path) -> None:
    source, base = tmp_path / "base.dts", tmp_path / "base.dtb"
    source.write_text(BASE_TREE)
    quietly("dtc", "-@", "-I", "dts", "-O", "dtb", "-o", base, source)
    patch, merged = tmp_path / "patch.dtbo", tmp_path / "merged.dtb"
    patch.write_bytes(overlay(consecutive(HIGH, 2)).to_dtb())
    quietly("fdtoverlay", "-i", base, "-o", merged, patch)
    quietly("dtc", "-I", "dtb", "-O", "dts", merged)

    read = fdt.parse_dtb(merged.read_bytes())
    (gic,) = words(read, "/interrupt-controller@8000000", "phandle")
    for device, irq in (("/virtio_mmio@1234567000", 40), ("/virtio_mmio@1234568000", 41)):
        assert words(read, device, "interrupt-parent") == [gic]
        assert words(read, device, "interrupts") == [0, irq, 4]
        assert has(read, device, "dma-coherent")


def test_an_overlay_needs_the_label_it_names(tmp_path: Path) -> None:
    source, base, patch = (tmp_path / n for n in ("base.dts", "base.dtb", "patch.dtbo"))
    source.write_text(BASE_TREE)
    quietly("dtc", "-@", "-I", "dts", "-O", "dtb", "-o", base, source)
    patch.write_bytes(overlay([HIGH], interrupt_parent="absent").to_dtb())
    done = subprocess.run(
        ["fdtoverlay", "-i", base, "-o", tmp_path / "x", patch], capture_output=True, timeout=30
    )
    assert done.returncode


def test_the_command_line_has_what_the_kernel_parses() -> None:
    assert kernel_parameters(consecutive(MmioInstance(0x1_0000_0000, 5), 2)) == (
        "virtio_mmio.device=0x200@0x100000000:5:0 virtio_mmio.device=0x200@0x100000200:6:1"
    )


def test_instances_lie_side_by_side() -> None:
    made = consecutive(MmioInstance(0xA00_0000, 16, dma_coherent=False), 4)
    assert all(a.base + a.size == b.base and a.irq + 1 == b.irq for a, b in pairwise(made))
    assert not any(i.dma_coherent for i in made)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"base": 2}, "base 0x2"),
        ({"base": -4}, "base"),
        ({"size": 0x100}, "size 0x100"),
        ({"size": 0x202}, "size 0x202"),
        ({"base": (1 << 64) - 0x100}, "above 2\\^64"),
        ({"irq": 988}, "irq 988"),
        ({"irq": -1}, "irq -1"),
    ],
)
def test_what_no_guest_could_use_is_refused(arguments: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(HIGH, **arguments)  # type: ignore[arg-type]  # all are numbers


def test_two_devices_in_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        tree([MmioInstance(0x1000, 1), MmioInstance(0x1100, 2)])
    with pytest.raises(ValueError, match="at least one"):
        consecutive(HIGH, 0)
