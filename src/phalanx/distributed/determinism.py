# SPDX-License-Identifier: Apache-2.0
"""Compares numbers that should be equal in all processes: digests say whether they are, sketches how far they differ.

result = phalanx.sdc.check_determinism(model, lambda net, x, y: loss_function(net(x), y), x, y)
print(result)                       # workers 0, 1, 2, 3 agree bit for bit
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.core.pytree import from_payload, to_payload
from phalanx.core.round import make_generator
from phalanx.core.world import Collective
from phalanx.distributed.process_group import ProcessGroupCollective
from phalanx.distributed.recompute import Loss, group_of, recompute, snapshot, unwrap_module

BUCKETS = 256  # sums of a sketch; its error of a distance is about 1 / sqrt(2 BUCKETS), 4 %
_PIECE = 1 << 20  # numbers in float64 at a time, a multiple of BUCKETS

Named = Iterable[tuple[str, Tensor | None]]


@dataclass(frozen=True)
class Determinism:
    """Which workers hold the same bits.

    Args:
        digests: BLAKE3 of each worker's numbers, in hexadecimal.
        groups: workers with equal digests; the largest group first, of equal sizes the one with the lowest worker.
        difference: the largest relative Euclidean distance of a group from the first one, to about 4 %; inf where one
            has NaN or Inf and the other has not.
        unsteady: workers whose second computation gave another result than their first.
    """

    digests: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    difference: float = 0.0
    unsteady: tuple[int, ...] = ()

    @property
    def is_deterministic(self) -> bool:
        """Whether exact votes are possible: all workers agree bit for bit, and each repeats its own result."""
        return len(self.groups) == 1 and not self.unsteady

    def __str__(self) -> str:
        first, *others = self.groups
        sentence = (
            f"{ranks_in_words(first)} agree bit for bit" if len(first) > 1 else f"{ranks_in_words(first)} is alone"
        )
        if others:
            rest = sorted(w for group in others for w in group)
            sentence += (
                f"; {ranks_in_words(rest)} differ{'s' * (len(rest) == 1)} by up to {self.difference:.1e} (relative)"
            )
        if self.unsteady:
            sentence += (
                f"; {ranks_in_words(self.unsteady)} did not repeat the own result: kernels are not deterministic"
            )
        return sentence


def compare_rows(world: Collective, rows: Tensor) -> Determinism:
    """Groups the workers by rows that are equal bit for bit; every process calls it and gets the same result.

    It sends 32 bytes of each worker, and 2 KiB more where rows differ.

    Shapes: (k, d), a row for each worker of this process, or (d,), one that all of them hold.
    Args:
        rows: d may differ between workers, whose rows then differ.
    """
    stack = rows.expand(len(world.local_workers), -1) if rows.dim() == 1 else rows
    if len(stack) != len(world.local_workers):
        raise ValueError(f"this process has {len(world.local_workers)} workers and rows of {len(stack)}")
    named = [[("row", row)] for row in stack]
    return _compare(world, [digest(row) for row in named], lambda: torch.stack([sketch(row) for row in named]))


def compare_computations(
    world: Collective,
    model: nn.Module,
    loss_function: Loss,
    batch: tuple[Any, ...],
    seed: int = 0,
    state: dict[str, Any] | None = None,
) -> Determinism:
    """Computes loss and gradients in every process, twice, and compares them bit for bit.

    Args:
        model: the same weights in every process, with or without DistributedDataParallel; it is not changed.
        loss_function: called as loss_function(module, *batch) with the unwrapped module; returns a scalar.
        batch: the same in every process.
        seed: of dropout and of all else that is random in a pass.
        state: buffers and modes to compute with, from `snapshot`; the model's own when None.
    """
    state = state or snapshot(unwrap_module(model))
    again = digest(recompute(model, loss_function, batch, state, seed))
    answer = recompute(model, loss_function, batch, state, seed)
    mine = digest(answer)
    k = len(world.local_workers)
    found = _compare(world, [mine] * k, lambda: sketch(answer).expand(k, -1))
    steady = world.all_gather(torch.tensor([[mine == again]] * k, dtype=torch.uint8)).flatten().tolist()
    return Determinism(found.digests, found.groups, found.difference, tuple(w for w, s in enumerate(steady) if not s))


def check_determinism(
    model: nn.Module, loss_function: Loss, *batch: Any, world: Collective | None = None, seed: int = 0
) -> Determinism:
    """Whether exact votes and audits are possible on this cluster: all ranks compute rank 0's micro-batch, twice.

    Every rank calls it, before training. Where ranks differ, kernels, threads or hardware do: votes and audits need a
    tolerance above `difference` then, or the same software and hardware everywhere.

    Args:
        model: with or without DistributedDataParallel; it is not changed.
        loss_function: called as loss_function(module, *batch) with the unwrapped module; returns a scalar.
        batch: tensors, or tuples, lists and dictionaries of them; rank 0's counts.
        world: of the model's process group, or the default one, when None.
        seed: of dropout and of all else that is random in a pass.
    Raises:
        ValueError: the ranks hold different weights, or the model needs other ranks for a pass.
    """
    module = unwrap_module(model)
    world = world or ProcessGroupCollective(group=group_of(model))
    state, weights = snapshot(module), digest(module.named_parameters())
    groups = _compare(
        world, [weights] * len(world.local_workers), lambda: sketch(module.named_parameters())[None]
    ).groups
    if len(groups) > 1:
        raise ValueError(
            f"{ranks_in_words(groups[0])} and {ranks_in_words(sorted(chain(*groups[1:])))} hold different "
            "weights; give all ranks the same before their computations are compared"
        )
    if isinstance(world, ProcessGroupCollective):
        mine = to_payload({"batch": batch, **state})
        arrived = world.send_recv(dict.fromkeys(range(1, world.size), mine) if world.rank == 0 else {})
        state = from_payload(arrived.get(0, mine), next(module.parameters()).device)
        batch = state.pop("batch")
    return compare_computations(world, model, loss_function, batch, seed, state)


def digest(tensors: Named) -> bytes:
    """32 bytes of BLAKE3 over names, dtypes, shapes and bits; a missing tensor is not one of zeros."""
    from blake3 import blake3

    made = blake3()
    for name, tensor in tensors:
        form = None if tensor is None else (str(tensor.dtype), tuple(tensor.shape))
        made.update(repr((name, form)).encode())
        if tensor is not None and tensor.numel():
            made.update(_flat(tensor).cpu().view(torch.uint8).numpy().data)
    return made.digest()


def sketch(tensors: Named, seed: int = 0) -> Tensor:
    """A short vector whose distances estimate those of the tensors: the loss, and sums of all other entries.

    Entry i of a tensor is added to sum i modulo 256 under a random sign, in float64; the squared distance of two
    sketches is that of the tensors in the mean over the signs.

    Shapes: -> (257,) on the CPU.
    Source: Alon, Matias, Szegedy, The space complexity of approximating the frequency moments, 1996.
    """
    loss, sums = torch.zeros(1, dtype=torch.float64), torch.zeros(BUCKETS, dtype=torch.float64)
    for name, tensor in tensors:
        if tensor is None:
            continue
        if name == "loss":
            loss = tensor.detach().double().reshape(1).cpu()
            continue
        rng = make_generator("sketch", seed, name)
        for piece in _flat(tensor).split(_PIECE):
            signs = torch.randint(2, (len(piece),), generator=rng, dtype=torch.int8)
            padded = torch.zeros(-(-len(piece) // BUCKETS) * BUCKETS, dtype=torch.float64)
            padded[: len(piece)] = piece.cpu().double() * (2 * signs - 1)
            sums += padded.view(-1, BUCKETS).sum(dim=0)
    return torch.cat([loss, sums])


def apart(a: Tensor, b: Tensor) -> float:
    """The relative Euclidean distance that two sketches show: of the losses or of the rest, the larger one."""
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    a, b = a[a.isfinite()], b[b.isfinite()]
    return max(_relative(a[:1], b[:1]), _relative(a[1:], b[1:]))


def groups_of(digests: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    """The workers of each digest; the largest group first, of equal sizes the one with the lowest worker."""
    groups: dict[Any, list[int]] = {}
    for worker, each in enumerate(digests):
        groups.setdefault(each, []).append(worker)
    return tuple(sorted(map(tuple, groups.values()), key=lambda group: (-len(group), group)))


def share_digests(world: Collective, digests: Sequence[bytes]) -> list[bytes]:
    """The digests of all workers. Shapes: k digests of this process's workers -> n."""
    mine = torch.tensor([list(each) for each in digests], dtype=torch.uint8)
    return [bytes(row) for row in world.all_gather(mine).tolist()]


def ranks_in_words(ranks: Sequence[int], noun: str = "worker") -> str:
    """The ranks in words, for errors and logs.

    >>> ranks_in_words([0, 2])
    'workers 0, 2'
    """
    return f"{noun}{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _compare(world: Collective, digests: list[bytes], sketches: Callable[[], Tensor]) -> Determinism:
    everyone = share_digests(world, digests)
    groups = groups_of(everyone)
    difference = 0.0
    if len(groups) > 1:
        all_sketches = world.all_gather(sketches().expand(len(world.local_workers), -1))
        difference = max(apart(all_sketches[groups[0][0]], all_sketches[group[0]]) for group in groups[1:])
    return Determinism(tuple(each.hex() for each in everyone), groups, difference)


def _flat(tensor: Tensor) -> Tensor:
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return (torch.view_as_real(dense) if dense.is_complex() else dense).contiguous().reshape(-1)


def _relative(a: Tensor, b: Tensor) -> float:
    scale = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) / scale if scale else 0.0
