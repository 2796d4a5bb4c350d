# SPDX-License-Identifier: Apache-2.0
"""Silent corruption: ranks that compute wrong numbers without an error, found by computing some of them twice.

check = phalanx.sdc.check(model, every=100)             # plain, or in DistributedDataParallel
for x, y in batches:
    check(lambda net, x, y: loss_function(net(x), y), x, y)
    loss_function(model(x), y).backward()           # the training loop stays as it is
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from phalanx.core.expression import require, require_entries
from phalanx.core.layout import plain_name
from phalanx.core.payload import Payload
from phalanx.core.pytree import cut, from_payload, to_payload
from phalanx.core.round import make_generator
from phalanx.distributed.determinism import BUCKETS, apart, digest, groups_of, ranks_in_words, share_digests, sketch
from phalanx.distributed.determinism import Determinism as Determinism
from phalanx.distributed.determinism import check_determinism as check_determinism
from phalanx.distributed.determinism import compare_rows as compare_rows
from phalanx.distributed.process_group import ProcessGroupCollective
from phalanx.distributed.recompute import Loss, LossAndGrads, group_of, recompute, snapshot, unwrap_module
from phalanx.integrations.handshake import agree, refuse_split

Pair = tuple[int, int]

_COUNTS = ("compared", "suspected", "convicted", "unsteady")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """A disagreement that an audit met; the same on every rank.

    Args:
        step: call of the audit, from 0.
        kind: "computation": a pair computed one micro-batch differently; "weights": ranks hold different parameters.
        suspects: ranks of which at least one is wrong.
        hosts: of the suspects, in their order.
        culprit: the rank that others outvote, or None where no vote decides.
        pair: the two ranks that differed; None for weights.
        third: the rank that was asked for a third vote.
        difference: relative Euclidean distance of the gradients or weights, or of the losses if that is larger.
        unsteady: ranks of the pair that did not repeat their own result.
    """

    step: int
    kind: Literal["computation", "weights"]
    suspects: tuple[int, ...]
    hosts: tuple[str, ...]
    culprit: int | None
    pair: Pair | None = None
    third: int | None = None
    difference: float = 0.0
    unsteady: tuple[int, ...] = ()

    def __str__(self) -> str:
        who = ", ".join(f"rank {r} on {h}" for r, h in zip(self.suspects, self.hosts, strict=True))
        size = f"{self.difference:.1e} (relative)"
        if self.kind == "weights":
            rest = "the majority" if self.culprit is not None else "each other"
            return f"step {self.step}: {who}: other weights than {rest}, apart by {size}"
        if self.culprit is not None:
            said = f"step {self.step}: {who} computed a micro-batch unlike two other computations of it, by {size}"
        else:
            said = f"step {self.step}: {who} computed one micro-batch differently, by {size}, and no vote decides"
        if self.unsteady:
            said += (
                f"; {ranks_in_words(self.unsteady, 'rank')} did not repeat the own result: flaky hardware, "
                "or kernels that are not deterministic, for which rtol is there"
            )
        return said


@dataclass(frozen=True)
class _Result:
    """What is known everywhere of a rank's loss and gradients."""

    digest: bytes
    sketch: Tensor


class SilentCorruptionCheck:
    """Compares, every few steps, what pairs of ranks make of one micro-batch; gloo and NCCL.

    All ranks pair up at once, anew each time, so that every two have met after n - 1 audits (n for odd n, where one
    rank rests). The lower rank of a pair sends its micro-batch; both compute loss and gradients on the plain module
    under one seed and compare digests. A pair that differs computes again, and a third rank votes. Nothing that
    training sees is changed: parameters, gradients, buffers and random numbers end as without.

    Every rank makes it and calls it, in the same order. Between audits a call costs nothing.

    Args:
        model: the same weights on every rank; plain or in DistributedDataParallel.
        every: calls from one audit to the next; the first call is one.
        seed: of dropout and whatever else is random in an audited pass; equal on every rank.
        rtol: largest relative distance that passes as equal, for ranks whose kernels differ; 0 asks for equal bits, and
            `phalanx.sdc.check_determinism` tells whether this cluster gives them. Faults below it stay unseen.
        examples: first examples of the micro-batch that are enough; all when None.
        group: process group; that of the model, or the default one, when None.
    Raises:
        ValueError: on every rank: fewer than two ranks, a model whose passes need all of them, or arguments that differ
            between ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 100,
        seed: int = 0,
        rtol: float = 0.0,
        examples: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.model, self.every, self.seed, self.rtol, self.examples = model, every, seed, rtol, examples
        self._world = ProcessGroupCollective(group=group or group_of(model))

        def make() -> tuple[nn.Module, dict[str, object]]:
            require(every >= 1, f"an audit needs every >= 1, got every={every}")
            require(0.0 <= rtol < 1.0, f"an audit needs 0 <= rtol < 1, got rtol={rtol}")
            require(examples is None or examples >= 1, f"an audit needs examples >= 1, got examples={examples}")
            require(self._world.size >= 2, "an audit compares two ranks, and this process group has one")
            make_generator("audit", seed)
            module = unwrap_module(model)
            refuse_split(module, "sdc.check")
            shapes = [(plain_name(name), p.shape) for name, p in module.named_parameters()]
            settings = {"every": every, "rtol": rtol, "examples": examples}
            return module, {"what is made": "sdc.check", "seed": seed, "settings": settings, "parameters": shapes}

        self._module = agree(self._world, make, "sdc.check")
        self._hosts: list[str] = []
        self.step, self.audits = 0, 0
        self.counts = {name: [0] * self._world.size for name in _COUNTS}

    def __call__(self, loss_function: Loss, *inputs: Any) -> tuple[Finding, ...]:
        """Returns the findings of this step's audit, on every rank; empty where all agree, and between audits.

        Args:
            loss_function: called as loss_function(module, *inputs) with the plain module; returns a scalar.
            inputs: tensors, or tuples, lists and dictionaries of them.
        """
        step = self.step
        self.step += 1
        if step % self.every:
            return ()
        findings = self._audit(step, loss_function, inputs)
        self.audits += 1
        for finding in findings:
            if self._world.rank == 0:
                _log.warning("%s", finding)
            for rank in finding.suspects:
                self.counts["suspected" if finding.culprit is None else "convicted"][rank] += 1
            for rank in finding.unsteady:
                self.counts["unsteady"][rank] += 1
        return findings

    def table(self) -> list[dict[str, Any]]:
        """One row a rank: audits in which it was compared, suspected, convicted, and unsteady."""
        return [{"rank": r, **{name: self.counts[name][r] for name in _COUNTS}} for r in range(self._world.size)]

    def state_dict(self) -> dict[str, Any]:
        """Counters, for the checkpoint; the same on every rank."""
        counts = {name: list(row) for name, row in self.counts.items()}
        return {"ranks": self._world.size, "step": self.step, "audits": self.audits, "counts": counts}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises:
            ValueError: it was taken among more or fewer ranks.
        """
        require_entries(saved, ("ranks", "step", "audits", "counts"))
        n = self._world.size
        require(saved["ranks"] == n, f"the audit's state is of {saved['ranks']} ranks and here are {n}; begin without")
        self.step, self.audits = saved["step"], saved["audits"]
        self.counts = {name: list(row) for name, row in saved["counts"].items()}

    def _audit(self, step: int, loss_function: Loss, inputs: tuple[Any, ...]) -> tuple[Finding, ...]:
        """Pairs compute and compare their results; pairs that differ go on to `_judge`."""
        rank, n = self._world.rank, self._world.size
        pairs = _pairs_of(n, self.audits)
        own_pair = next((pair for pair in pairs if rank in pair), None)
        payload = self._pack_inputs(inputs) if own_pair and rank == own_pair[0] else None
        arrived = self._world.send_recv({own_pair[1]: payload} if own_pair and payload else {})
        payload = payload or next(iter(arrived.values()), None)
        answer = None if payload is None else self._compute(payload, step, loss_function)
        weights = share_digests(self._world, [digest(self._module.named_parameters())])
        first = share_digests(self._world, [bytes(32) if answer is None else digest(answer)])
        for r in (r for pair in pairs for r in pair):
            self.counts["compared"][r] += 1
        findings = self._diverged(step, weights)
        # with other weights another result is no fault of the computation
        unequal = [(a, b) for a, b in pairs if first[a] != first[b] and weights[a] == weights[b]]
        if not unequal:
            return findings
        results = self._share([answer])[0]
        # the gradients' memory, before the pass is repeated
        del answer
        differing = [(a, b) for a, b in unequal if not self._same(results[a], results[b])]
        return findings + (self._judge(step, loss_function, payload, differing, results, weights) if differing else ())

    def _judge(
        self,
        step: int,
        loss_function: Loss,
        payload: Payload | None,
        differing: list[Pair],
        first: list[_Result],
        weights: list[bytes],
    ) -> tuple[Finding, ...]:
        """Each pair computes again, and a third rank computes the same: what two ranks have in common is right."""
        rank = self._world.rank
        thirds = self._thirds(differing, weights)
        to_thirds = {c: payload for (a, _), c in thirds.items() if rank == a and payload and c is not None}
        arrived = self._world.send_recv(to_thirds)
        repeats = any(rank in pair for pair in differing)
        repeated_answer = self._compute(payload, step, loss_function) if payload and repeats else None
        other_payload = next(iter(arrived.values()), None)
        vote = None if other_payload is None else self._compute(other_payload, step, loss_function)
        repeated, votes = self._share([repeated_answer, vote])
        hosts = self._host_names()
        findings: list[Finding] = []
        for (a, b), c in thirds.items():
            third_results = [] if c is None else [votes[c]]
            confirmed = {
                one: any(self._same(first[one], result) for result in (first[other], repeated[other], *third_results))
                for one, other in ((a, b), (b, a))
            }
            wrong = [r for r, is_confirmed in confirmed.items() if not is_confirmed]
            suspects = tuple(wrong) if len(wrong) == 1 else (a, b)
            findings.append(
                Finding(
                    step=step,
                    kind="computation",
                    suspects=suspects,
                    hosts=tuple(hosts[r] for r in suspects),
                    culprit=suspects[0] if len(suspects) == 1 else None,
                    pair=(a, b),
                    third=c,
                    difference=apart(first[a].sketch, first[b].sketch),
                    unsteady=tuple(r for r in (a, b) if not self._same(first[r], repeated[r])),
                )
            )
        return tuple(findings)

    def _diverged(self, step: int, weights: list[bytes]) -> tuple[Finding, ...]:
        """Ranks whose parameters are not those of the majority, or all ranks without one."""
        groups = groups_of(weights)
        if len(groups) == 1:
            return ()
        sketches = self._world.all_gather(sketch(self._module.named_parameters(), self.seed)[None])
        difference = max(apart(sketches[groups[0][0]], sketches[group[0]]) for group in groups[1:])
        majority = 2 * len(groups[0]) > len(weights)
        suspects = tuple(sorted(r for group in groups[1 if majority else 0 :] for r in group))
        culprit = suspects[0] if len(suspects) == 1 else None
        hosts = self._host_names()
        return (Finding(step, "weights", suspects, tuple(hosts[r] for r in suspects), culprit, difference=difference),)

    def _thirds(self, differing: list[Pair], weights: list[bytes]) -> dict[Pair, int | None]:
        """A rank outside each pair, another one for each, of the same weights; of good name, if there is a choice."""
        n, taken = self._world.size, set[int]()
        busy = {r for pair in differing for r in pair}
        thirds: dict[Pair, int | None] = {}
        for a, b in differing:
            free = [r for r in range(n) if r not in (a, b) and r not in taken and weights[r] == weights[a]]
            third = min(free, key=lambda r, b=b: (r in busy, self._accused(r), (r - b) % n), default=None)
            thirds[a, b] = third
            taken.update(() if third is None else (third,))
        return thirds

    def _accused(self, rank: int) -> int:
        return self.counts["convicted"][rank] + self.counts["suspected"][rank]

    def _pack_inputs(self, inputs: tuple[Any, ...]) -> Payload:
        kept = inputs if self.examples is None else cut(inputs, self.examples)
        return to_payload({"inputs": kept, **snapshot(self._module)})

    def _compute(self, payload: Payload, step: int, loss_function: Loss) -> LossAndGrads:
        # the sender unpacks its own payload too: the same strides, the same kernels
        tree = from_payload(payload, next(self._module.parameters()).device)
        seed = make_generator("audit", self.seed, step).initial_seed()
        return recompute(self.model, loss_function, tree.pop("inputs"), tree, seed)

    def _share(self, answers: Sequence[LossAndGrads | None]) -> list[list[_Result]]:
        """For each of the answers that this rank has, those of all ranks in its place."""
        digests = [bytes(32) if each is None else digest(each) for each in answers]
        sketches = [torch.zeros(BUCKETS + 1).double() if each is None else sketch(each, self.seed) for each in answers]
        bits = self._world.all_gather(torch.tensor([list(b"".join(digests))], dtype=torch.uint8))
        sums = self._world.all_gather(torch.cat(sketches)[None])
        cuts = zip(bits.split(32, dim=1), sums.split(BUCKETS + 1, dim=1), strict=True)
        return [[_Result(bytes(d), s) for d, s in zip(ds.tolist(), ss, strict=True)] for ds, ss in cuts]

    def _same(self, one: _Result, other: _Result) -> bool:
        return one.digest == other.digest or (self.rtol > 0 and apart(one.sketch, other.sketch) <= self.rtol)

    def _host_names(self) -> list[str]:
        if not self._hosts:
            name = torch.frombuffer(bytearray(socket.gethostname().encode()), dtype=torch.uint8)
            self._hosts = [
                bytes(each["host"].tolist()).decode() for each in self._world.all_gather_payloads({"host": name})
            ]
        return self._hosts


def _pairs_of(n: int, audit: int) -> list[Pair]:
    """The pairs of ranks in an audit, by the circle method: after n - 1 audits (n for odd n) every two have met once.

    >>> [_pairs_of(4, audit) for audit in range(3)]
    [[(0, 3), (1, 2)], [(2, 3), (0, 1)], [(1, 3), (0, 2)]]
    """
    places = n + n % 2
    # the last rank stays and the others rotate; for odd n the last one does not exist, and its partner rests
    rotated = [(k - audit) % (places - 1) for k in range(places - 1)]
    order = [*rotated, places - 1]
    pairs = [(order[0], order[-1])] + [(order[k], order[places - 1 - k]) for k in range(1, places // 2)]
    return [(min(pair), max(pair)) for pair in pairs if max(pair) < n]


check = SilentCorruptionCheck
