# SPDX-License-Identifier: Apache-2.0
"""Measures a job: all processes call `measure` alike, and all of them work at once, as in training."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, pstdev

import torch

from phalanx.attacks.adversary import NoAdversary
from phalanx.core.expression import require
from phalanx.core.parser import parse
from phalanx.core.round import Round
from phalanx.core.scatter import Scatter
from phalanx.core.stack import Stack
from phalanx.core.stage import Stage, TooFewRows, check_scheme
from phalanx.core.trees import State
from phalanx.core.wire_stage import stages_of
from phalanx.core.world import Collective
from phalanx.distributed.backend import CallKind, Kind, Recording, TorchBackend
from phalanx.distributed.job import Processes
from phalanx.distributed.process_group import ProcessGroupCollective
from phalanx.tools.advisor.link import MeasuredLink
from phalanx.tools.advisor.model import Cost, Effort, Message
from phalanx.tools.advisor.probe import KINDS, Probe
from phalanx.tools.advisor.quality import PLAIN, quality
from phalanx.tools.advisor.rehearse import Sample, rehearse
from phalanx.training.client_work import Gradient
from phalanx.training.phase import Run, amend
from phalanx.training.run_folder import about
from phalanx.training.trainer import Trainer

SMALLEST, FACTOR = 1024, 4  # bytes of a curve's first message, and how much longer the next one is
CURVE_S = 15.0  # seconds after which a curve is not measured further
LONG_S = 2.0  # what takes so long is repeated less often
NEAR, FAR = 2, 6  # workers between which costs are taken to lie on a line

OnProgress = Callable[[str], object]


@dataclass(frozen=True)
class Table:
    """Numbers that the processes measured at once, as rank 0 keeps them."""

    world: Collective

    def ready(self) -> None:
        """Waits for the other processes."""
        self.world.all_gather(torch.zeros(len(self.world.local_workers), 1))

    def every(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of each process, by rank."""
        row = torch.tensor([list(numbers)], dtype=torch.float64)
        return self.world.all_gather(row).tolist()

    def slowest(self, seconds: Sequence[float]) -> list[float]:
        """The longest of all processes, sample by sample."""
        return [max(column) for column in zip(*self.every(seconds), strict=True)]


def num_units(scheme: Stage, n: int) -> int:
    """How many different shares of the batch n workers compute."""
    allocation = scheme.assign(n)
    return n if allocation is None else allocation.num_units


def share(run: Run) -> int:
    """Examples of one worker in a step of a run's first phase, were no work done twice.

    Raises:
        ValueError: its workers do not send gradients.
    """
    work = run.phases[0].work
    if not isinstance(work, Gradient):
        raise ValueError(f"a step of gradient(...) is what is measured, and the run's workers do {work!r}")
    return max(1, work.batch // run.workers)


def measure(
    run: Run,
    schemes: Sequence[Stage],
    team: Processes,
    repeats: int = 5,
    workers: int | None = None,
    work_s: float | None = None,
    on_progress: OnProgress = lambda words: None,
) -> Probe:
    """Work, schemes and, between two processes or more, the link.

    Args:
        run: whose model, data, share of the batch, precision and threads are measured; one worker a process.
        schemes: to measure besides the uncompressed one.
        repeats: steps behind every number, >= 1.
        workers: to predict for, where there is only one process.
        work_s: of forward and backward, where it is known and need not be measured.
        on_progress: called with a few words before each measurement; see `num_progress_calls` for how often.
    Raises:
        ValueError: a scheme does not fit the number of workers, or the data are missing.
    """
    plain = parse(PLAIN)
    every = [plain, *(s for s in dict.fromkeys(schemes) if s != plain)]
    plans = [places(scheme, workers or max(team.size, NEAR), team.size == 1) for scheme in every]
    phase = replace(run.phases[0], scheme=plain)
    each = share(run)
    run = replace(run, workers=team.size, byzantine=NoAdversary(), phases=(phase,))
    run = amend(run, "work.batch", each * team.size)
    collective = team.collective(team.size)
    trainer = Trainer(run, collective)
    table = Table(collective)
    on_progress("forward and backward")
    stacks, spent_s = _work(trainer, table, repeats if work_s is None else 1)
    costs = _costs(trainer, table, dict(zip(every, plans, strict=True)), stacks, repeats, on_progress)
    link = None
    if team.size > 1:
        on_progress("the link")
        link = _link(table, costs, repeats)
    work_s = spent_s if work_s is None else work_s
    return Probe(
        run=run,
        hosts=_hosts(collective),
        parameters=trainer.layout.d,
        batch=each,
        work_s=work_s,
        link=link,
        costs=costs,
        about=about(),
    )


def num_progress_calls(schemes: Sequence[Stage], team: Processes, repeats: int) -> int:
    """How often `measure` says what it does."""
    return 1 + (repeats + 1) * len({parse(PLAIN), *schemes}) + (team.size > 1)


def places(scheme: Stage, n: int, alone: bool) -> tuple[int, ...]:
    """Numbers of workers at which to rehearse a scheme: n and one far from it, or two small ones for a process alone.

    Raises:
        ValueError: n workers are too few for it.
    """
    check_scheme(scheme, n)
    for stage in stages_of(scheme):
        require(
            not isinstance(stage, Scatter) or stage.r == 1,
            f"a process alone rehearses a scheme with copies of its own messages, and the owners of {stage!r} vote on "
            "different columns; measure scatter(...) with r=1 and add what r times the payload takes",
        )
    wanted = {NEAR, FAR} if alone and n > FAR else {n, FAR if n < FAR else NEAR}
    return tuple(sorted(m for m in wanted if _fits(scheme, m))) or (n,)


def _fits(scheme: Stage, n: int) -> bool:
    try:
        check_scheme(scheme, n)
    except TooFewRows:
        return False
    return True


def _work(trainer: Trainer, table: Table, repeats: int) -> tuple[list[Stack], float]:
    """Some rows, and the seconds of one, in rounds of training: after a wait for the wire, work is slower."""
    phase, stacks, spent = trainer.config.phases[0], [], []
    state: State = {}
    while len(spent) < repeats + 1:
        index = len(spent)
        table.ready()
        began = time.perf_counter()
        stack, _ = trainer.compute_rows(index)
        worked = time.perf_counter()
        spent += table.slowest([worked - began])
        stacks = [*stacks[-1:], stack]
        result, state = phase.scheme(stack, state, Round(index, trainer.config.seed, world=trainer.world))
        trainer.update_model(trainer.config.position(index), result)
        (whole,) = table.slowest([time.perf_counter() - began])
        repeats = repeats if whole < LONG_S else min(repeats, 2)
    return stacks, median(spent[1:])


def _costs(
    trainer: Trainer,
    table: Table,
    plans: Mapping[Stage, Sequence[int]],
    stacks: Sequence[Stack],
    repeats: int,
    on_progress: OnProgress,
) -> tuple[Cost, ...]:
    """What each scheme costs at its numbers of workers.

    One sample of each is taken after the other, so that a disturbance spoils one of each and not all of one.
    """
    steps = {(scheme, n): rehearse(trainer, scheme, stacks, n, table.ready) for scheme in plans for n in plans[scheme]}
    samples: dict[tuple[Stage, int], list[Sample]] = {key: [] for key in steps}
    for turn in range(repeats + 1):
        for scheme, plan in plans.items():
            on_progress(f"{scheme!r}, {'to warm up' if turn == 0 else f'{turn} of {repeats}'}")
            for n in plan:
                samples[scheme, n].append(next(steps[scheme, n]))
    return tuple(_cost(table, scheme, {n: samples[scheme, n][1:] for n in plan}) for scheme, plan in plans.items())


def _cost(table: Table, scheme: Stage, samples: Mapping[int, Sequence[Sample]]) -> Cost:
    """From the samples of this process at numbers of workers, and those of the others."""
    both = [sample for column in samples.values() for sample in column]
    kinds: list[CallKind] = [kind for kind, _ in both[0].calls]
    # one row a process and step, one column a collective
    flat = torch.tensor(table.every([size for s in both for _, size in s.calls])).reshape(-1, len(kinds))
    messages = tuple(Message(k, fmean(c), pstdev(c)) for k, c in zip(kinds, flat.T.tolist(), strict=True))
    sent = fmean(value for row in table.every([s.sent_bytes for s in both]) for value in row)
    efforts = tuple(_effort(table, n, column) for n, column in samples.items())
    return Cost(repr(scheme), quality(scheme), sent, messages, efforts)


def _effort(table: Table, n: int, samples: Sequence[Sample]) -> Effort:
    names = ("encode_s", "pack_s", "decode_s", "rule_s", "finish_s")
    parts = {name: table.slowest([getattr(s.effort, name) for s in samples]) for name in names}
    return Effort(n, **{name: median(values) for name, values in parts.items()})


def _link(table: Table, costs: Sequence[Cost], repeats: int) -> MeasuredLink:
    lines = Recording(TorchBackend())
    curves = {}
    for kind in KINDS:
        largest = max([SMALLEST * FACTOR, *(int(m.bytes) for c in costs for m in c.messages if m.kind == kind)])
        curves[kind] = _curve(table, lines, kind, largest, repeats)
    return MeasuredLink(lines.size, curves)


def _curve(table: Table, lines: Recording, kind: Kind, largest: int, repeats: int) -> tuple[tuple[int, float], ...]:
    """Seconds of a collective for messages up to the largest that a scheme sends, or until time is up."""
    points: list[tuple[int, float]] = []
    spent, size, last = 0.0, SMALLEST, False
    while not last and spent < CURVE_S:
        last = size >= largest
        size = min(size, largest)
        # the first one also tells, in every process alike, how many more there is time for
        first = _collective(table, lines, kind, size)
        more = [_collective(table, lines, kind, size) for _ in range(repeats if first < LONG_S else 1)]
        points.append((lines.calls[-1].bytes, median(more)))
        spent += first + sum(more)
        size *= FACTOR
    return tuple(points)


def _collective(table: Table, lines: Recording, kind: Kind, size: int) -> float:
    # a new world knows no sizes yet, so that its last call carries the whole message
    world = ProcessGroupCollective(backend=lines)
    table.ready()
    if kind == "gather":
        world.gather([{"values": torch.zeros(size, dtype=torch.uint8)}], limit_bytes=2 * size + 1024)
    else:
        weights = torch.ones(1, dtype=torch.float64)
        world.mean(torch.zeros(1, size // 4), weights, lines.size * weights.sum())
    (seconds,) = table.slowest([lines.calls[-1].seconds])
    return seconds


def _hosts(world: Collective) -> tuple[str, ...]:
    name = torch.frombuffer(bytearray(socket.gethostname().encode()), dtype=torch.uint8)
    return tuple(bytes(payload["host"].tolist()).decode() for payload in world.all_gather_payloads({"host": name}))
