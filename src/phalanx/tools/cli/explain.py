# SPDX-License-Identifier: Apache-2.0
"""phalanx explain: what a scheme sends, holds, tolerates and trusts."""

from __future__ import annotations

from typing import Annotated

import typer

from phalanx.tools.cli.common import Imports, Json, print_json, user_command

MODEL, SHAPE, CLASSES = "resnet18()", (3, 32, 32), 10  # of CIFAR-10


@user_command
def explain(
    scheme: Annotated[
        str | None, typer.Argument(metavar="SCHEME", help="A chain, such as chain(gather(qsgd()), median()).")
    ] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Number of workers.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="EXPR", help=f"The model, such as lenet; {MODEL} if left out.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="EXPR", help="The data set; images of CIFAR-10's form if left out.")
    ] = None,
    entries: Annotated[
        int | None, typer.Option(metavar="COUNT", help="Number of entries of a row, in place of a model.")
    ] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Says what a scheme sends, holds, tolerates and trusts.

    It prints one table: the bytes that a worker sends and that the busiest line carries in a step, the memory behind
    the wire, the Byzantine workers that each stage tolerates, and who is trusted all the same. Nothing is trained; the
    payload is that of a row of Gaussian entries.

    \b
    Examples:
      phalanx explain "chain(gather(qsgd(bits=4)), krum(f=2))" --workers 15
      phalanx explain "chain(scatter(terngrad()), mean())" --workers 64 \\
        --entries 124000000
      phalanx explain "chain(vote(dense(), r=3), median())" --workers 45 \\
        --model mlp --data digits --json
    """
    from torch import nn

    from phalanx.core.expression import require
    from phalanx.core.parser import parse
    from phalanx.core.registry import import_extensions
    from phalanx.data.dataset import Data
    from phalanx.models.model import Model
    from phalanx.tools.advisor.explain import explain as explained
    from phalanx.tools.report import tables

    import_extensions(imports or [])
    if scheme is None or workers is None:
        raise ValueError('explain needs a scheme and --workers, as in "chain(gather(qsgd()), median())" --workers 15')
    if entries is not None and (model, data) != (None, None):
        raise ValueError("--entries says how long a row is, and so does the model; give one of them")
    described: nn.Module | int
    if entries is not None:
        described = entries
    else:
        named = parse(_call(model or MODEL))
        require(isinstance(named, Model), f"--model takes a model, got {named!r}; phalanx list model names them")
        if data is None:
            described = named.build(SHAPE, CLASSES)
        else:
            examples = parse(_call(data))
            require(
                isinstance(examples, Data), f"--data takes a data set, got {examples!r}; phalanx list data names them"
            )
            described = named.build_for(examples.load())
    found = explained(scheme, described, workers)
    if as_json:
        print_json(found.to_json())
        return
    tables.console().print(tables.plain_table("", ["what", "how much"], found.lines()))


def _call(text: str) -> str:
    return f"{text}()" if text.strip().isidentifier() else text
