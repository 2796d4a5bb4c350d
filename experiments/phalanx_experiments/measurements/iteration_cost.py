# SPDX-License-Identifier: Apache-2.0
"""Tables 6.5 to 6.7: where the seconds of a round go, with and without codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import phalanx_experiments.measurements.one_round as cluster
from phalanx.aggregators.geometric_median import GeometricMedian
from phalanx.aggregators.mean import Mean
from phalanx.attacks.adversary import RandomWorkers
from phalanx.attacks.constant import Constant
from phalanx.attacks.reverse import Reverse
from phalanx.codecs.dense import Dense
from phalanx.coding.cyclic import ROW, Cyclic, scales_of
from phalanx.coding.repetition import Repetition
from phalanx.coding.vote import Vote
from phalanx.core.allocation import Allocation
from phalanx.core.attack import Attack
from phalanx.core.codec import Gather
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.payload import Payload
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Chain, chain, check_scheme
from phalanx.core.wire_stage import Upload
from phalanx.core.world import LocalCollective
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.advisor.link import Line
from phalanx.tools.runner.measurement import Measurement
from phalanx.training.client_work import Gradient
from phalanx.training.context import WorkerContext
from phalanx.training.phase import Phase, Run
from phalanx.training.trainer import Trainer

OnProgress = Callable[[str], None]


@method("iteration_cost", "measurement")
class IterationCost(Measurement):
    """Seconds of a round of n workers and a server, part by part: mean, geometric median, repetition, cyclic code.

    All is done on this machine at the real size. Computation: forward and backward of every unit of work; a worker
    takes the sum of its own. Encoding: one worker adds its units up (cyclic) and makes its payload or its digest.
    Decoding: the server's rules on the rows of all workers, gate included; s of them, drawn from the seed, are false.
    Communication is *modelled*: the bytes of the real payloads into the server, over a line of this bandwidth and
    latency.

    Each result is compared with the mean of the honest units: `error` is the relative distance of the gradients,
    installed entries left out, and `exact` says that all bits are those that come out without false rows.

    Args:
        batch: examples of all units together, the same number in each. The units are n shares for the mean, the
            geometric median and the cyclic code, and n // r shares for repetition with r = 2s + 1.
        workers: n > 2s.
        s: workers that send false rows, and that the codes stand; >= 1.
        attacks: what those send, one after the other.
        bandwidth: bytes per second on the server's line; TCP carries 94 % of them.
        latency_s: of one message.
        repeats: of encoding and decoding, of which the median counts, >= 1. Units are computed once.
        threads: of worker and server, >= 1.
        memory_bytes: rows beyond so many lie in a file in the folder for temporary files; see `large_rows`.
    Source: Chen et al., DRACO: Byzantine-resilient Distributed Training via Redundant Gradients, 2018,
        arXiv:1803.09877; Tables 6.5 to 6.7 and Figure 6.3 of Wang's dissertation. Differs: one machine in place of 46;
        no word there on the bandwidth, 1.25e9 is what the larger of its instances is sold with.
    """

    data: Data
    model: Model
    workers: int = 45
    s: int = 5
    batch: int = 180
    attacks: tuple[Attack, ...] = (Constant(), Reverse())
    bandwidth: float = 1.25e9
    latency_s: float = 1e-4
    repeats: int = 1
    threads: int = 2
    memory_bytes: int = 8_000_000_000
    seed: int = 0

    def validate(self) -> None:
        n, s = self.workers, self.s
        require(s >= 1, f"iteration_cost needs s >= 1, got s={s}")
        require(n > 2 * s, f"iteration_cost needs workers > 2s, got workers={n}, s={s}")
        groups = n // self.r
        require(
            self.batch >= 1 and self.batch % n == 0 == self.batch % groups,
            f"iteration_cost needs a batch of whole shares for {n} workers and for {groups} groups, got "
            f"batch={self.batch}",
        )
        for name in ("repeats", "threads"):
            require(getattr(self, name) >= 1, f"iteration_cost needs {name} >= 1, got {name}={getattr(self, name)}")
        require(self.memory_bytes >= 0, f"iteration_cost needs memory_bytes >= 0, got {self.memory_bytes}")
        require(len(self.attacks) >= 1, "iteration_cost needs at least one attack, got none")
        require(len(set(self.attacks)) == len(self.attacks), "iteration_cost: two attacks are equal; keep one of them")
        for attack in self.attacks:
            require(
                not attack.asks_all,
                f"iteration_cost shows an attack no rows but its own, and {attack!r} sees all; choose reverse() or "
                "constant()",
            )
        Line(self.latency_s, self.bandwidth)

    @property
    def r(self) -> int:
        """Workers in a group of the repetition code."""
        return 2 * self.s + 1

    @property
    def schemes(self) -> dict[str, Chain]:
        """The schemes that are compared, by name."""
        gather = Gather(Dense())
        return {
            "mean": chain(gather, Mean()),
            "geometric median": chain(gather, GeometricMedian()),
            "repetition by digests": chain(Vote(Dense(), r=self.r), Mean()),
            "repetition by rows": chain(gather, Repetition(r=self.r)),
            "cyclic": chain(Cyclic(s=self.s)),
        }

    def check(self) -> None:
        for scheme in self.schemes.values():
            check_scheme(scheme, self.workers)

    def measure(self, on_progress: OnProgress) -> dict[str, Any]:
        self.check()
        before = torch.get_num_threads()
        try:
            return self._measured(on_progress)
        finally:
            torch.set_num_threads(before)

    def _measured(self, on_progress: OnProgress) -> dict[str, Any]:
        n, schemes = self.workers, self.schemes
        phase = Phase(Gradient(self.batch), schemes["mean"])
        run = Run(self.data, self.model, (phase,), workers=n, seed=self.seed, threads=self.threads)
        trainer = Trainer(run, LocalCollective(n))
        entries, costs = trainer.layout.d, dict[str, Any]()
        with cluster.large_rows(n, entries, self.memory_bytes) as rows:
            # one after the other in the same rows, as there may be no room for two of them
            sent = self._sent("repetition by rows", trainer, rows, on_progress)
            for name in ("repetition by digests", "repetition by rows"):
                costs[name] = self._cost(name, sent, on_progress)
            sent = self._sent("mean", trainer, rows, on_progress)
            for name in ("mean", "geometric median"):
                costs[name] = self._cost(name, sent, on_progress)
            on_progress("cyclic")
            costs["cyclic"] = self._cyclic_cost(sent)
        return {
            "workers": n,
            "false": sorted(self._liars),
            "entries": entries,
            "parameters": trainer.layout.stepped,
            "rows_bytes": 4 * n * entries,
            "rows_in": "memory" if 4 * n * entries <= self.memory_bytes else "a file",
            "schemes": {name: costs[name] for name in schemes},
        }

    @property
    def _liars(self) -> frozenset[int]:
        return RandomWorkers(self.s).at(0, self.workers, self.seed)

    def _allocation(self, name: str) -> Allocation:
        return self.schemes[name].assign(self.workers) or Allocation.single(range(self.workers))

    def _sent(self, name: str, trainer: Trainer, rows: Tensor, on_progress: OnProgress) -> Sent:
        """Fills the rows with what the workers send under a scheme that gives each of them one unit."""
        allocation, run = self._allocation(name), trainer.config
        units = allocation.num_units
        on_progress(f"{units} gradients of {self.batch // units} examples")
        samples = run.partition.draw(trainer.data, units, self.batch, 0, self.seed)
        layout, channels_last = trainer.layout, self.model.channels_last
        site = WorkerContext(
            model=trainer.model,
            layout=layout,
            data=trainer.data,
            augment=None,
            precision=run.precision,
            channels_last=channels_last,
            key=(self.seed, 0),
        )
        spent = cluster.compute(run.phases[0].work, site, allocation, samples, rows)
        have = [allocation.unit(worker) for worker in range(self.workers)]
        return Sent(rows, layout, cluster.mean_of(rows, [have.index(unit) for unit in range(units)]), spent)

    def _cyclic_cost(self, sent: Sent) -> dict[str, Any]:
        """The cost of the cyclic code; its rows take the memory of the units."""
        n, rows, layout, allocation = self.workers, sent.rows, sent.layout, self._allocation("cyclic")
        code, announced, world = Cyclic(s=self.s), scales_of(rows, layout), LocalCollective(n)
        line, ones = Line(self.latency_s, self.bandwidth), torch.ones(n, dtype=torch.float64)

        def units(worker: int, copied: bool = True) -> Stack:
            have = allocation.units[worker]
            # those of worker 0 lie one after the other
            mine = rows[list(have)] if copied else rows[: len(have)]
            return Stack(mine, layout, ((worker,),) * len(have), ones[: len(have)], units=have)

        first = units(0, copied=False)
        code.encode(first, n, announced)  # compiles
        _, encode_s = cluster.timed(lambda: code.encode(first, n, announced), self.repeats)
        lies: dict[Attack, dict[int, Payload]] = {attack: {} for attack in self.attacks}
        for worker in sorted(self._liars):
            own = Round(world=LocalCollective(n, local_workers=(worker,)), byzantine=self._liars)
            for attack, sent_by in lies.items():
                (sent_by[worker],) = code.encode(attack(units(worker), None, own)[0], n, announced)
        stack = Stack.of_units(rows, allocation, layout)
        payloads = code.encode(stack, n, announced, out=rows.view(torch.int32).unsqueeze(1))
        empty, round = Stack.of(rows[:0], layout), Round(world=world, announced=announced)
        faultless, attacks = code.receive(list(map(Upload, payloads)), empty, round).rows[0], dict[str, Any]()
        for attack, sent_by in lies.items():
            for worker, payload in sent_by.items():
                # in their place, so that the rows stay one table
                payloads[worker][ROW].copy_(payload[ROW])
                payloads[worker] = {**payload, ROW: payloads[worker][ROW]}
            uploads = list(map(Upload, payloads))
            result, decode_s = cluster.timed(lambda uploads=uploads: code.receive(uploads, empty, round), self.repeats)
            bytes_in = int(sum(note.value for note in result.notes if note.kind == "bytes"))
            attacks[repr(attack)] = {
                "bytes_in": bytes_in,
                "communication_s": line.delivered(bytes_in, 1),
                "decode_s": decode_s,
                "error": cluster.relative_error(result.rows[0, : layout.stepped], sent.mean[: layout.stepped]),
                "exact": torch.equal(result.rows[0], faultless),
            }
        return {
            "scheme": repr(self.schemes["cyclic"]),
            "examples": len(allocation.units[0]) * (self.batch // allocation.num_units),
            "computation_s": cluster.worker_seconds(allocation, sent.spent),
            "encode_s": encode_s,
            "attacks": attacks,
        }

    def _cost(self, name: str, sent: Sent, on_progress: OnProgress) -> dict[str, Any]:
        """The cost of a scheme with the rows that its workers send; the rows are restored afterwards."""
        on_progress(name)
        scheme, allocation, line = self.schemes[name], self._allocation(name), Line(self.latency_s, self.bandwidth)
        rows, layout, steps = sent.rows, sent.layout, sent.layout.stepped
        encode_s = cluster.encode_seconds(scheme, rows, layout, self.repeats)
        faultless = cluster.serve(scheme, rows, layout, 1).row
        liars, attacks = sorted(self._liars), dict[str, Any]()
        honest = rows[liars]
        for attack in self.attacks:
            cluster.falsify(attack, rows, layout, liars)
            served = cluster.serve(scheme, rows, layout, self.repeats)
            attacks[repr(attack)] = {
                "bytes_in": served.bytes_in,
                "communication_s": line.delivered(served.bytes_in, served.trips),
                "decode_s": served.decode_s,
                "error": cluster.relative_error(served.row[:steps], sent.mean[:steps]),
                "exact": torch.equal(served.row, faultless),
            }
            rows[liars] = honest
        return {
            "scheme": repr(scheme),
            "examples": len(allocation.units[0]) * (self.batch // allocation.num_units),
            "computation_s": cluster.worker_seconds(allocation, sent.spent),
            "encode_s": encode_s,
            "attacks": attacks,
        }


@dataclass(frozen=True)
class Sent:
    """The messages of the workers in a round without an attack.

    Args:
        rows: (n, d).
        mean: of their units, (d,).
        spent: seconds of each unit.
    """

    rows: Tensor
    layout: Layout
    mean: Tensor
    spent: Sequence[float]
