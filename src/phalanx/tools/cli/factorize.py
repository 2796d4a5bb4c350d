# SPDX-License-Identifier: Apache-2.0
"""phalanx factorize: what would a low-rank network save?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.core.expression import require
from phalanx.tools.cli.common import Json, print_json, said

if TYPE_CHECKING:
    from phalanx.lowrank.plan import Plan


@said
def factorize(
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Needed; one of the networks above.")] = None,
    ratio: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Of the rank in the full rank, in (0, 1]; 0.25 if left out."),
    ] = None,
    first: Annotated[
        int | None,
        typer.Option(metavar="K", help="The first K - 1 layers stay full, not those as published."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="A layer, or a pattern, that stays full; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan here as YAML, to edit and to give back.")] = None,
    times: Annotated[
        bool,
        typer.Option("--times", help="Measure a training step of every layer on this machine; seconds to a minute."),
    ] = False,
    batch: Annotated[
        int,
        typer.Option(metavar="EXAMPLES", show_default=False, help="In the sample that --times uses; 16 if left out."),
    ] = 16,
    as_json: Json = False,
) -> None:
    """Shows what a low-rank network saves, layer by layer.

    Every layer stands there with its rank, parameters and multiply-accumulates, full and factorized. Without --first
    and --keep the layers are those that the dissertation makes low-rank. Parameters are also shown as the bytes of a
    gradient in float32, which a worker sends in a step.

    \b
    Networks:
      vgg19-cifar, vgg19-lth, resnet18-cifar, resnet50, wide-resnet50-2,
      lstm-wikitext2, transformer-multi30k

    \b
    Examples:
      phalanx factorize --model resnet18-cifar --ratio 0.25
      phalanx factorize --model vgg19-cifar --first 10 --out plan.yaml
      phalanx factorize --model vgg19-cifar --times --batch 32
      phalanx factorize --model transformer-multi30k --json
    """
    from phalanx.lowrank.layer_timing import timed
    from phalanx.lowrank.planner import plan
    from phalanx.models.zoo import NETWORKS, network

    if model is None:
        raise ValueError(f"factorize needs --model; choose from {', '.join(NETWORKS)}")
    chosen = network(model)
    if first is None and not keep:
        found = chosen.hybrid(ratio)
    else:
        share = chosen.ratio if ratio is None else ratio
        found = plan(
            chosen.build().eval(), share, 1 if first is None else first, keep or (), sample_input=chosen.sample_input()
        )
    if times:
        require(batch >= 1, f"--times needs a batch of at least 1, got {batch}")
        found = timed(chosen.build(), found, chosen.sample_input(batch))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found.to_yaml())
    if as_json:
        print_json(_plain(model, found))
        return
    typer.echo(str(found))
    if times:
        typer.echo(f"times   forward and backward of each layer alone at a batch of {batch}, as training runs it here")
    if out is not None:
        typer.echo(f"plan    {out}")


def _plain(model: str, plan: Plan) -> dict[str, Any]:
    counted = ("parameters", "macs", "step_bytes", "seconds")
    totals = {name: getattr(plan, name) for kind in counted for name in (kind, f"{kind}_after")}
    entries = [
        {
            **{name: getattr(entry, name) for name in ("name", "kind", "shape", "rank", "reason")},
            **{name: getattr(entry, name) for name in totals},
        }
        for entry in plan
    ]
    return {"model": model, **totals, "layers": entries}
