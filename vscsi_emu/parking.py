"""Commands of paused units: they wait, and are decided in the order they came."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vscsi_emu.scsi.status import Status

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Command, Lu, Nexus, Port, Queue


class Parking:
    """Of all units of a runtime."""

    def __init__(self) -> None:
        self._waiting: dict[Lu, list[Command]] = {}
        self._ending: set[Queue] = set()

    def pause(self, lu: Lu) -> None:
        self._waiting.setdefault(lu, [])

    def resume(self, lu: Lu) -> list[Command]:
        """Those that waited."""
        return self._waiting.pop(lu, [])

    def park(self, command: Command) -> bool:
        """Whether a command has to wait; nobody else answers it then."""
        if not self._waiting:
            return False
        nexus = command.nexus
        waiting = self._waiting.get(nexus.lu) if nexus else None
        if waiting is None:
            return False
        if command.queue in self._ending:
            command.finish(Status.BUSY)
        else:
            waiting.append(command)
        return True

    def end(self, queue: Queue) -> None:
        """A queue is to be drained, which waits for all that was taken from it: until `ended`, its
        commands end with BUSY instead of waiting, as their initiator may try again.

        They cannot stay available in the ring: its index counts commands in order, and some behind
        them are complete."""
        self._ending.add(queue)
        for commands in self._waiting.values():
            for command in commands:
                if command.queue == queue:
                    command.finish(Status.BUSY)
            commands[:] = [command for command in commands if command.queue != queue]

    def ended(self, queue: Queue) -> None:
        self._ending.discard(queue)

    def take(
        self, port: Port | None, lu: Lu | None, nexus: Nexus | None, tag: int | None
    ) -> list[Command]:
        """Those that an abort ends: decided later, they would have effects but no answer."""
        taken: list[Command] = []
        for at, commands in self._waiting.items():
            if lu in (None, at):
                hit = [
                    command
                    for command in commands
                    if port in (None, command.port)
                    and nexus in (None, command.nexus)
                    and tag in (None, command.tag)
                ]
                taken += hit
                commands[:] = [command for command in commands if command not in hit]
        return taken
