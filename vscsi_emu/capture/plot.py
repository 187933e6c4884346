"""Pictures of a capture: latency over time, and where on the medium what happened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vscsi_emu.control.decode import find
from vscsi_emu.control.trace import TracedCommand
from vscsi_emu.scsi.cdb import Cdb, Route

_COLORS: Final = {"read": "tab:blue", "write": "tab:red", "other": "tab:gray"}
_CELLS: Final = (120, 60)
"""Of the heat map: over time, over LBAs."""


def classify(command: TracedCommand) -> tuple[str, int | None]:
    """Class as in statistics, and the first LBA where the CDB has one."""
    raw = bytes.fromhex(command.cdb)
    known = find(raw)
    if known is None:
        return "other", None
    lba = Cdb(known, raw[: known.length])["lba"] if "lba" in known.fields else None
    return {Route.READ: "read", Route.WRITE: "write"}.get(known.route, "other"), lba


def draw(commands: Sequence[TracedCommand], path: str | Path, *, title: str = "") -> None:
    """Writes a PNG, or what else the name of the file says. `ValueError` without commands;
    `ImportError` without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not commands:
        raise ValueError("there are no commands to draw")
    first = min(command.time - command.nanoseconds for command in commands)
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    latency, heat = figure.subplots(2, 1, sharex=True)
    classes = [classify(command) for command in commands]
    seconds = [(command.time - command.nanoseconds - first) / 1e9 for command in commands]
    for name, color in _COLORS.items():
        chosen = [at for at, (found, _) in enumerate(classes) if found == name]
        if chosen:
            latency.plot(
                [seconds[at] for at in chosen],
                [commands[at].nanoseconds / 1e3 for at in chosen],
                ".",
                markersize=3,
                color=color,
                label=f"{name} ({len(chosen)})",
            )
    failed = [at for at, command in enumerate(commands) if not command.good]
    if failed:
        latency.plot(
            [seconds[at] for at in failed],
            [commands[at].nanoseconds / 1e3 for at in failed],
            "kx",
            markersize=6,
            label=f"errors ({len(failed)})",
        )
    latency.set_yscale("log")
    latency.set_ylabel("latency [µs]")
    latency.set_title(title or f"{len(commands)} commands")
    latency.legend(loc="upper right", fontsize="small")
    placed = [
        (seconds[at], lba)
        for at, (_, lba) in enumerate(classes)
        if lba is not None and commands[at].data_out_moved + commands[at].data_in_moved
    ]
    if placed:
        *_, image = heat.hist2d(*zip(*placed, strict=True), bins=_CELLS, cmap="inferno", cmin=1)
        figure.colorbar(image, ax=heat, label="commands")
    heat.set_ylabel("LBA")
    heat.set_xlabel("time [s]")
    figure.savefig(path, dpi=100)
