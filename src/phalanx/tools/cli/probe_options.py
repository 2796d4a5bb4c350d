# SPDX-License-Identifier: Apache-2.0
"""The options that probe and advise share, and the run and schemes that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.core.expression import require

if TYPE_CHECKING:
    from phalanx.core.stage import Stage
    from phalanx.distributed.job import Processes
    from phalanx.tools.advisor.link import Link
    from phalanx.tools.advisor.probe import Probe
    from phalanx.training.phase import Run

MODEL, DATA, BATCH, THREADS, PRECISION = "resnet18()", "cifar10()", 64, 1, "float32"

Model = Annotated[str | None, typer.Option(metavar="EXPR", help=f"The model, such as lenet; {MODEL} if left out.")]
Data = Annotated[str | None, typer.Option(metavar="EXPR", help=f"The data set, such as digits; {DATA} if left out.")]
Batch = Annotated[
    int | None, typer.Option(metavar="EXAMPLES", help=f"Batch of one worker in a step; {BATCH} if left out.")
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help=f"Threads of torch in each process; {THREADS} if left out.")
]
Precision = Annotated[str | None, typer.Option(metavar="DTYPE", help=f"float32 or bf16; {PRECISION} if left out.")]
Schemes = Annotated[
    list[str] | None,
    typer.Option("--scheme", metavar="EXPR", help="A scheme to measure; may be repeated; a selection if left out."),
]
Repeats = Annotated[
    int, typer.Option(metavar="STEPS", show_default=False, help="Steps behind every number; 5 if left out.")
]


def configured(options: dict[str, Any], n: int) -> Run:
    """The run of n workers that these options describe."""
    from phalanx.core.parser import parse
    from phalanx.data.dataset import Data
    from phalanx.models.model import Model
    from phalanx.tools.advisor.quality import PLAIN
    from phalanx.training.client_work import Gradient
    from phalanx.training.phase import Phase, Run

    def named(text: str | None, default: str, kind: type, word: str) -> Any:
        text = default if text is None else text
        value = parse(f"{text}()" if text.strip().isidentifier() else text)
        require(isinstance(value, kind), f"--{word} takes a {word}, got {value!r}; phalanx list {word} names them")
        return value

    batch = BATCH if options["batch"] is None else options["batch"]
    require(batch >= 1, f"--batch takes at least 1 example, got {batch}")
    model = named(options["model"], MODEL, Model, "model")
    data = named(options["data"], DATA, Data, "data")
    phase = Phase(Gradient(batch * n), parse(PLAIN))
    threads = THREADS if options["threads"] is None else options["threads"]
    return Run(data, model, (phase,), workers=n, threads=threads, precision=options["precision"] or PRECISION)


def schemes(texts: Sequence[str]) -> list[Stage]:
    """The schemes that these expressions describe; without any, a selection of all schemes."""
    from phalanx.integrations.gradient_exchange import as_scheme
    from phalanx.tools.advisor.quality import DEFAULTS

    return [as_scheme(text) for text in texts or DEFAULTS]


def check_repeats(repeats: int) -> None:
    """Raises ValueError unless the number of repeats is at least 1."""
    require(repeats >= 1, f"--repeats takes a number of steps >= 1, got {repeats}")


def no_options(options: dict[str, Any], sentence: str) -> None:
    """Raises ValueError if one of the options was given; `sentence` says why it must not be."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{sentence}; leave out {' and '.join(given)}")


def bar(total: int, processes: Processes) -> Any:
    """A progress bar on rank 0; within `with`, a function that shows the next step in a few words."""
    from phalanx.tools.report.progress import Steps

    return Steps(total) if processes.rank == 0 else nullcontext(lambda words: None)


def describe(probe: Probe, link: Link | None, measured: bool) -> str:
    """Says in one or two lines what the numbers of a probe belong to."""
    from phalanx.tools.advisor.units import bits
    from phalanx.tools.report.tables import seconds

    work = f"{probe.run.model!r}, {probe.parameters:,} parameters, {probe.batch} examples a worker"
    work += f"; forward and backward {seconds(probe.work_s)}"
    if link is None:
        return f"{work}; link unknown: a process alone has none"
    lines = {kind: link.line(kind) for kind in (("gather", "reduce") if measured else ("gather",))}
    names = {"gather": "all-gather ", "reduce": "all-reduce "} if measured else {"gather": ""}
    rates = {k: bits(x.bandwidth) if x.has_slope else "a bandwidth too high to tell" for k, x in lines.items()}
    each = [f"{names[k]}{rates[k]} and {seconds(x.latency_s)} a message" for k, x in lines.items()]
    return f"{work}\nlink: {', '.join(each)}"
