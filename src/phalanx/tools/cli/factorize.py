# SPDX-License-Identifier: Apache-2.0
"""phalanx factorize: shows what a low-rank network saves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.core.expression import require
from phalanx.tools.cli.common import Json, print_json, user_command

if TYPE_CHECKING:
    from phalanx.lowrank.plan import Plan


@user_command
def factorize(
    model: Annotated[str | None, typer.Option(metavar="NAME", help="One of the networks above; needed.")] = None,
    ratio: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Rank as a share of the full rank, in (0, 1]; 0.25 if left out."),
    ] = None,
    first: Annotated[
        int | None,
        typer.Option(metavar="K", help="Keep the first K - 1 layers full, in place of the published choice."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Keep this layer full; a name or a pattern; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan to this YAML file, which you can edit.")] = None,
    times: Annotated[
        bool,
        typer.Option("--times", help="Measure a training step of every layer on this machine; seconds to a minute."),
    ] = False,
    batch: Annotated[
        int,
        typer.Option(metavar="EXAMPLES", show_default=False, help="With --times: batch of the sample; 16 if left out."),
    ] = 16,
    as_json: Json = False,
) -> None:
    """Shows what a low-rank network saves, layer by layer.

    The table has the rank, parameters and multiply-accumulates of every layer, full and factorized. Without --first and
    --keep it factorizes the layers that the dissertation factorizes. It also gives the bytes of a float32 gradient,
    which a worker sends in a step.

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
    from phalanx.lowrank.planner import plan as make_plan
    from phalanx.tools.zoo import NETWORKS, network

    if model is None:
        raise ValueError(f"factorize needs --model; choose from {', '.join(NETWORKS)}")
    chosen = network(model)
    if first is None and not keep:
        plan = chosen.hybrid(ratio)
    else:
        share = chosen.ratio if ratio is None else ratio
        plan = make_plan(
            chosen.build().eval(), share, 1 if first is None else first, keep or (), sample_input=chosen.sample_input()
        )
    if times:
        require(batch >= 1, f"--times needs a batch of at least 1, got {batch}")
        plan = timed(chosen.build(), plan, chosen.sample_input(batch))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(plan.to_yaml())
    if as_json:
        print_json(_plain(model, plan))
        return
    typer.echo(str(plan))
    if times:
        typer.echo(f"times   forward and backward of each layer alone, at a batch of {batch}, on this machine")
    if out is not None:
        typer.echo(f"plan    {out}")


def _plain(model: str, plan: Plan) -> dict[str, Any]:
    quantities = ("parameters", "macs", "step_bytes", "seconds")
    totals = {name: getattr(plan, name) for quantity in quantities for name in (quantity, f"{quantity}_after")}
    entries = [
        {
            **{name: getattr(entry, name) for name in ("name", "kind", "shape", "rank", "reason")},
            **{name: getattr(entry, name) for name in totals},
        }
        for entry in plan
    ]
    return {"model": model, **totals, "layers": entries}
