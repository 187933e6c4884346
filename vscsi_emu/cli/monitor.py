"""What commands share that talk to a running server's monitor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vscsi_emu.control import Client

monitor_option = click.option(
    "--monitor", metavar="PATH", required=True, help="Socket that `serve --monitor` listens on."
)


@contextmanager
def monitor_client(path: str, *, timeout: float = 60.0) -> Iterator[Client]:
    """A connection whose mishaps reach the user as one line; Ctrl-C ends the command quietly."""
    from vscsi_emu.control import Client, RpcError

    try:
        with Client(path, timeout=timeout) as client:
            yield client
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except RpcError as error:
        raise click.ClickException(str(error)) from None
    except TimeoutError:
        raise click.ClickException(f"{path}: no answer within {timeout:g} s") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise click.ClickException(
            f"{path}: nobody listens there; start vscsi-emu serve with --monitor {path}"
        ) from None
    except ConnectionError as error:
        raise click.ClickException(f"{path}: {error}") from None
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror or error}") from None
