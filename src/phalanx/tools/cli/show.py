# SPDX-License-Identifier: Apache-2.0
"""phalanx show: the expressions behind a recipe."""

from __future__ import annotations

import typer

from phalanx.tools.cli.common import Imports, Json, Only, Recipe, Scale, Seed, Settings, print_json, user_command


@user_command
def show(
    recipe: Recipe = None,
    scale: Scale = None,
    settings: Settings = None,
    only: Only = None,
    seed: Seed = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Prints the expressions behind a recipe.

    Every run and every measurement has one. You can edit it, keep it in a file, and run that file.

    \b
    Examples:
      phalanx show quickstart
      phalanx show robust-mnist --scale paper --only "no attack: mean"
      phalanx show quickstart --only krum --set rounds=10 > krum.txt
      phalanx run krum.txt
    """
    from phalanx.core.registry import import_extensions
    from phalanx.tools.report.pretty import pretty
    from phalanx.tools.runner.request import build_study

    if recipe is None:
        raise ValueError("show needs a recipe, such as quickstart; phalanx list recipes names them all")
    import_extensions(imports or [])
    study = build_study(recipe, scale, settings or [], only or [], seed)
    for notice in study.notices:
        typer.echo(notice, err=True)
    if as_json:
        print_json(study.to_json())
        return
    for label, configured in study.jobs.items():
        typer.echo(f"# {label}\n{pretty(repr(configured))}\n")
