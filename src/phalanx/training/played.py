# SPDX-License-Identifier: Apache-2.0
"""What the workers that a process plays do in a round of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from phalanx.core.allocation import Allocation
from phalanx.core.payload import Payload
from phalanx.core.trees import State
from phalanx.data.dataset import Dataset
from phalanx.training.client_work import rows_of
from phalanx.training.context import ModelProvider, WorkerContext
from phalanx.training.phase import Run


def site_of(
    run: Run, source: ModelProvider, data: Dataset, index: int, at: int, answers: Mapping[int, Payload]
) -> WorkerContext:
    """What every worker has at hand in round `index` of a run, which is round `at` of its phase."""
    phase = run.phases[run.phase_at(index)[0]]
    layout = phase.work.layout(source, at)
    last, key = run.model.channels_last, (run.seed, index)
    return WorkerContext(
        source.model, layout, data, run.augment, run.precision, last, key, source, at, phase.rounds, answers
    )


def round_of(
    run: Run, site: WorkerContext, index: int, ids: Sequence[int], memories: State
) -> tuple[Tensor, Tensor, Tensor, State]:
    """As `rows_of`, of these workers: honest ones do the phase's work, Byzantine ones their own if they have any."""
    phase = run.phases[run.phase_at(index)[0]]
    allocation = phase.scheme.assign(run.workers) or Allocation.single(range(run.workers))
    units = allocation.num_units
    samples = list(phase.work.samples(run.partition, site.data, units, index, run.seed))
    works = dict.fromkeys(range(units), phase.work)
    if phase.adversary is not None:
        theirs = phase.adversary.samples(run.partition, site.data, units, index, run.seed)
        for worker in run.byzantine.at(index, run.workers, run.seed):
            works[worker], samples[worker] = phase.adversary, theirs[worker]
    return rows_of(works, site, allocation, samples, ids, memories)
