# SPDX-License-Identifier: Apache-2.0
"""phalanx list: the recipes, and the parts that runs consist of."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from phalanx.tools.cli.common import Json, print_json, user_command


@user_command
def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(help="What to list: recipes, aggregators, attacks, codecs, data, models ...; all if left out."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Lists the recipes, and the parts that runs consist of.

    \b
    Examples:
      phalanx list recipes
      phalanx list aggregators
      phalanx list attacks --json
    """
    from phalanx.core.registry import entries, kinds, suggest
    from phalanx.tools.report import tables
    from phalanx.tools.runner.recipe import recipes

    rows_by_kind: dict[str, list[dict[str, Any]]] = {}
    if kind is None or kind in ("recipe", "recipes"):
        rows_by_kind["recipes"] = [{"name": r.name, "scales": list(r.scales), "summary": r.summary} for r in recipes()]
    if not rows_by_kind or kind is None:
        by_plural = {_plural(kind): kind for kind in kinds()}
        if kind is not None and kind not in by_plural and _plural(kind) not in by_plural:
            raise ValueError(f"nothing is called {kind!r}; {suggest(kind, ['recipes', *by_plural])}")
        for plural in by_plural if kind is None else [kind if kind in by_plural else _plural(kind)]:
            rows_by_kind[plural] = [
                {"name": e.name, "fields": tables.fields(e), "summary": e.summary} for e in entries(by_plural[plural])
            ]
    if as_json:
        print_json(rows_by_kind)
        return
    console = tables.console()
    for plural, rows in rows_by_kind.items():
        header = list(rows[0]) if rows else []
        cells = [[v if isinstance(v, str) else ", ".join(v) for v in row.values()] for row in rows]
        console.print(tables.plain_table(plural, header, cells))


def _plural(kind: str) -> str:
    if kind.endswith("s") or kind in ("data", "client_work"):
        return kind
    if kind.endswith("y"):
        return f"{kind[:-1]}ies"
    return f"{kind}es" if kind.endswith("sh") else f"{kind}s"
