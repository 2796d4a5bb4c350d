# SPDX-License-Identifier: Apache-2.0
"""phalanx doctor: can a run work on this machine?"""

from __future__ import annotations

from pathlib import Path

import typer

from phalanx.tools.cli.common import Json, print_json, user_command


@user_command
def doctor(as_json: Json = False) -> None:
    """Reports whether a run can work on this machine.

    It checks versions, threads, process groups, GPU, data and folders. The exit code is 1 if a run cannot work here.

    \b
    Examples:
      phalanx doctor
      phalanx doctor --json
    """
    from phalanx.tools.doctor import examine
    from phalanx.tools.report import tables

    findings = examine(Path("runs"))
    if as_json:
        print_json([vars(f) for f in findings])
    else:
        states = {True: "ok", False: "FAULT", None: "-"}
        rows = [(states[f.ok], f.name, f.words) for f in findings]
        tables.console().print(tables.plain_table("doctor", ["", "what", "found"], rows))
    if any(f.ok is False for f in findings):
        raise typer.Exit(1)
