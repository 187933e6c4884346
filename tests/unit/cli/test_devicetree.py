"""``vscsi-emu devicetree``."""

from __future__ import annotations

from pathlib import Path

import fdt
import pytest
from click.testing import CliRunner, Result

from vscsi_emu.cli.devicetree import devicetree


def run(*arguments: str) -> Result:
    return CliRunner().invoke(devicetree, arguments)


def node(blob: bytes) -> fdt.Node:
    return fdt.parse_dtb(blob).get_node("/virtio_mmio@b000000")


@pytest.mark.parametrize(("option", "present"), [((), True), (("--no-dma-coherent",), False)])
def test_dts_and_dtb_describe_the_same_device(option: tuple[str, ...], present: bool) -> None:
    arguments = ("--base", "0xb000000", "--size", "4096", "--irq", "0x12", *option)
    dts, dtb = (run(*arguments, "--format", f) for f in ("dts", "dtb"))
    assert dts.exit_code == dtb.exit_code == 0
    made = node(dtb.stdout_bytes)
    assert made == fdt.parse_dts(dts.stdout).get_node("/virtio_mmio@b000000")
    assert made.exist_property("dma-coherent") == present
    assert list(made.get_property("reg").data) == [0, 0xB00_0000, 0, 4096]
    assert list(made.get_property("interrupts").data) == [0, 0x12, 4]


def test_output_goes_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.dtbo"
    assert run("--format", "overlay", "--interrupt-parent", "intc", "-o", str(path)).exit_code == 0
    assert fdt.parse_dtb(path.read_bytes()).exist_property("intc", "/__fixups__")
    missing = run("-o", str(tmp_path / "no" / "x"))
    assert missing.exit_code == 1
    assert "No such file" in missing.output


def test_cmdline_is_one_line() -> None:
    done = run("--format", "cmdline", "--count", "2", "--base", "0x1000")
    assert done.output == (
        "virtio_mmio.device=0x200@0x1000:16:0 virtio_mmio.device=0x200@0x1200:17:1\n"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--base", "ten"), "'ten' is no number"),
        (("--base", "3"), "multiple of 4"),
        (("--irq", "987", "--count", "2"), "irq 988"),
    ],
)
def test_bad_input_is_named(arguments: tuple[str, ...], complaint: str) -> None:
    done = run(*arguments)
    assert done.exit_code
    assert complaint in done.output
