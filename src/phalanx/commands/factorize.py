# SPDX-License-Identifier: Apache-2.0
"""phalanx factorize: what would a low-rank network save?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.commands.common import Json, print_json, said

if TYPE_CHECKING:
    from phalanx.lowrank.plan import Plan


@said
def factorize(
    model: Annotated[str, typer.Option(metavar="NAME", help="A network of the dissertation; see the examples.")],
    ratio: Annotated[float | None, typer.Option(help="Of the rank to the full rank, in (0, 1]; 0.25.")] = None,
    first: Annotated[
        int | None,
        typer.Option(metavar="K", help="The first K - 1 layers stay full, not those as published."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="A layer, or a pattern, that stays full; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan here as YAML, to edit and to give back.")] = None,
    as_json: Json = False,
) -> None:
    """Shows every layer of a network with its rank, parameters and multiply-accumulates, full and factorized.

    Without --first and --keep the layers are those that the dissertation makes low-rank.

    \b
    Examples:
      phalanx factorize --model resnet18-cifar --ratio 0.25
      phalanx factorize --model vgg19-cifar --first 10 --out plan.yaml
      phalanx factorize --model transformer-multi30k --json
    The networks are vgg19-cifar, vgg19-lth, resnet18-cifar, resnet50, wide-resnet50-2, lstm-wikitext2 and
    transformer-multi30k.
    """
    from phalanx.lowrank.rules import plan
    from phalanx.models.zoo import network

    chosen = network(model)
    if first is None and not keep:
        found = chosen.hybrid(ratio)
    else:
        share = chosen.ratio if ratio is None else ratio
        found = plan(
            chosen.build().eval(), share, 1 if first is None else first, keep or (), sample_input=chosen.sample_input()
        )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found.to_yaml())
    if as_json:
        print_json(_plain(model, found))
        return
    typer.echo(str(found))
    if out is not None:
        typer.echo(f"plan    {out}")


def _plain(model: str, plan: Plan) -> dict[str, Any]:
    totals = {name: getattr(plan, name) for name in ("parameters", "parameters_after", "macs", "macs_after")}
    entries = [
        {
            **{name: getattr(entry, name) for name in ("name", "kind", "shape", "rank", "reason")},
            **{name: getattr(entry, name) for name in totals},
        }
        for entry in plan
    ]
    return {"model": model, **totals, "layers": entries}
