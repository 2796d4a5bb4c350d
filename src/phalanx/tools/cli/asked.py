# SPDX-License-Identifier: Apache-2.0
"""What probe and advise are asked to measure: their common options, and what these stand for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.core.expression import require
from phalanx.distributed.job import Processes

if TYPE_CHECKING:
    from phalanx.core.stage import Stage
    from phalanx.tools.advisor.link import Link
    from phalanx.tools.advisor.probe import Probe
    from phalanx.training.phase import Run

MODEL, DATA, BATCH, THREADS, PRECISION = "resnet18()", "cifar10()", 64, 1, "float32"

Model = Annotated[str | None, typer.Option(metavar="EXPR", help=f"Model, such as lenet; {MODEL} if left out.")]
Data = Annotated[str | None, typer.Option(metavar="EXPR", help=f"Data set, such as digits; {DATA} if left out.")]
Batch = Annotated[int | None, typer.Option(metavar="EXAMPLES", help=f"Of one worker in a step; {BATCH} if left out.")]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help=f"Threads of torch in each process; {THREADS} if left out.")
]
Precision = Annotated[str | None, typer.Option(metavar="DTYPE", help=f"float32 or bf16; {PRECISION} if left out.")]
Schemes = Annotated[
    list[str] | None, typer.Option("--scheme", metavar="EXPR", help="A scheme; may be repeated; a choice if left out.")
]
Repeats = Annotated[int, typer.Option(metavar="STEPS", show_default=False, help="Behind every number; 5 if left out.")]


def configured(options: dict[str, Any], n: int) -> Run:
    """A run of n workers with these options."""
    from phalanx.core.parser import parse
    from phalanx.data.dataset import Data
    from phalanx.models.model import Model
    from phalanx.tools.advisor.quality import PLAIN
    from phalanx.training.client_work import Gradient
    from phalanx.training.phase import Phase, Run

    def named(text: str | None, default: str, kind: type, word: str) -> Any:
        text = default if text is None else text
        made = parse(f"{text}()" if text.strip().isidentifier() else text)
        require(isinstance(made, kind), f"--{word} takes a {word}, got {made!r}; phalanx list {word} names them")
        return made

    batch = BATCH if options["batch"] is None else options["batch"]
    require(batch >= 1, f"--batch takes at least 1 example, got {batch}")
    model = named(options["model"], MODEL, Model, "model")
    data = named(options["data"], DATA, Data, "data")
    phase = Phase(Gradient(batch * n), parse(PLAIN))
    threads = THREADS if options["threads"] is None else options["threads"]
    return Run(data, model, (phase,), workers=n, threads=threads, precision=options["precision"] or PRECISION)


def schemes(texts: Sequence[str]) -> list[Stage]:
    """The schemes of these expressions, or a choice of all."""
    from phalanx.integrations.exchange import as_scheme
    from phalanx.tools.advisor.quality import DEFAULTS

    return [as_scheme(text) for text in texts or DEFAULTS]


def check_repeats(repeats: int) -> None:
    """Raises ValueError unless a number can be measured so often."""
    require(repeats >= 1, f"--repeats takes a number of steps >= 1, got {repeats}")


def no_options(options: dict[str, Any], sentence: str) -> None:
    """Raises ValueError, beginning with a sentence that says why, where one of the options was given."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{sentence}; leave out {' and '.join(given)}")


def bar(total: int, processes: Processes) -> Any:
    """Progress on rank 0, within `with` a function of the words that say what comes next."""
    from phalanx.tools.report.progress import Steps

    return Steps(total) if processes.rank == 0 else nullcontext(lambda words: None)


def words(found: Probe, link: Link | None, measured: bool) -> str:
    """What the numbers are of, in a line."""
    from phalanx.tools.advisor.units import bits
    from phalanx.tools.report.tables import seconds

    work = f"{found.run.model!r}, {found.parameters:,} parameters, {found.batch} examples a worker"
    work += f"; forward and backward {seconds(found.work_s)}"
    if link is None:
        return f"{work}; link unknown: a process alone has none"
    lines = {kind: link.line(kind) for kind in (("gather", "reduce") if measured else ("gather",))}
    words = {"gather": "all-gather ", "reduce": "all-reduce "} if measured else {"gather": ""}
    each = [f"{words[k]}{bits(x.bandwidth)} and {seconds(x.latency_s)} a message" for k, x in lines.items()]
    return f"{work}\nlink: {', '.join(each)}"
