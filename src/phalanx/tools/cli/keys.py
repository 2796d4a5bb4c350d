# SPDX-License-Identifier: Apache-2.0
"""phalanx keys: who is who in a server's job beyond one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phalanx.tools.cli.common import Json, print_json, user_command


@user_command
def keys(
    folder: Annotated[Path | None, typer.Argument(help="New or empty folder for the keys.")] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Worker processes of the job.")] = None,
    as_json: Json = False,
) -> None:
    """Makes the keys of a server and its worker processes.

    Both sides prove by them who they are, and all that they say is encrypted (mutual TLS). The server's host needs
    authority.pem, server.pem and server.key; the host of worker process K needs authority.pem, worker-K.pem and
    worker-K.key, and no other key. Keys are valid for a year. The authority's own key is not kept.

    \b
    Examples:
      phalanx keys job-keys --workers 9
      phalanx keys job-keys --workers 9 --json
    """
    from phalanx.core.expression import require
    from phalanx.distributed.server.identity import make_keys

    require(
        folder is not None and workers is not None,
        "keys needs a folder and the number of worker processes, such as phalanx keys job-keys --workers 9",
    )
    assert folder is not None and workers is not None
    written = make_keys(folder, workers)
    if as_json:
        print_json({"folder": str(folder), "files": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(path)
