# SPDX-License-Identifier: Apache-2.0
"""phalanx keys: who is who in a server's job beyond one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phalanx.tools.cli.common import Json, print_json, user_command


@user_command
def keys(
    folder: Annotated[Path, typer.Argument(help="New or empty folder for the keys.")],
    workers: Annotated[int, typer.Option(metavar="N", help="Worker processes of the job.")],
    as_json: Json = False,
) -> None:
    """Makes the keys of a server and its worker processes.

    Both sides prove by them who they are, and all that they say is encrypted (mutual TLS). The server's host needs
    authority.pem, server.pem and server.key; the host of worker process K needs authority.pem, worker-K.pem and
    worker-K.key, and no other key. Keys are valid for a year. The authority's own key is not kept.

    \b
    Examples:
      phalanx keys job-keys --workers 9
      torchrun ... -m phalanx run quickstart --server --keys job-keys
    """
    from phalanx.distributed.server.identity import make_keys

    written = make_keys(folder, workers)
    if as_json:
        print_json({"folder": str(folder), "files": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(path)
