"""Writes to files are told of."""

from __future__ import annotations

import asyncio
from pathlib import Path

from vscsi_emu.host.attributes import Attributes

SECONDS = 30.0


def test_writes_are_told_until_nobody_listens(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_text("0")

    async def run() -> None:
        attributes = Attributes()
        heard: asyncio.Queue[str] = asyncio.Queue()
        missing = tmp_path / "missing"
        cancel = attributes.watch([first, missing], lambda: heard.put_nowait("a"))
        attributes.watch([first, second], lambda: heard.put_nowait("b"))
        with first.open("r+") as file:
            file.write("1")
        assert {await next_of(heard) for _ in range(2)} == {"a", "b"}
        cancel()
        with first.open("r+") as file:
            file.write("2")
        with second.open("r+") as file:
            file.write("3")
        assert [await next_of(heard) for _ in range(2)] == ["b", "b"]
        assert heard.empty()
        attributes.close()

    async def next_of(heard: asyncio.Queue[str]) -> str:
        return await asyncio.wait_for(heard.get(), SECONDS)

    asyncio.run(run())
