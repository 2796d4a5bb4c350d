# SPDX-License-Identifier: Apache-2.0
"""The workers of a run, distributed over the processes of a torch.distributed job."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from phalanx.core.packing import ReceiveBuffers, pack, unpack
from phalanx.core.payload import BadPayload, Payload
from phalanx.core.precision import accumulation_dtype
from phalanx.core.trees import from_payload, to_payload
from phalanx.distributed.backend import LESS, Backend, TorchBackend

RECENT, SLACK_BYTES = 4, 4096  # if the last gathers differ by no more bytes, the next one needs a single all-gather


class ProcessGroupCollective:
    """n workers over the ranks of a process group, in contiguous blocks; one worker a rank when n is None.

    Payloads are sent as packed bytes by all-gather, on gloo and NCCL alike; every rank then runs the same deterministic
    stages behind the wire.

    Args:
        n: workers; at least one a rank.
        group: process group; the default one when None.
        backend: carries the bytes in place of a process group.
    Raises:
        ValueError: torch.distributed is not initialised, or there are fewer workers than ranks.
    """

    def __init__(
        self, n: int | None = None, group: dist.ProcessGroup | None = None, *, backend: Backend | None = None
    ) -> None:
        self._backend = backend or TorchBackend(group)
        self.rank, self._ranks = self._backend.rank, self._backend.size
        self.size = self._ranks if n is None else n
        if self.size < self._ranks:
            raise ValueError(f"{self._ranks} ranks need at least as many workers, got n={n}")
        self.workers = tuple(range(self.size))
        self.left_out: frozenset[int] = frozenset()
        self.echoes, self.gives_memory = self._backend.echoes, False
        bounds = [r * self.size // self._ranks for r in range(self._ranks + 1)]
        self._blocks = [range(a, b) for a, b in pairwise(bounds)]
        self.local_workers = tuple(self._blocks[self.rank])
        # by limit and number of wanted workers: the longest blocks of recent gathers, the same in every process
        self._recent: dict[tuple[int, int], deque[int]] = {}
        self.device = self._backend.device  # of the messages

    def __repr__(self) -> str:
        return f"ProcessGroupCollective({self.size}, rank {self.rank} of {self._ranks})"

    def gather(self, payloads: Sequence[Payload | None], limit_bytes: int) -> list[Payload | BadPayload]:
        """The payload of each worker, as in the simulation; each is packed, sent and unpacked."""
        return self._gather(payloads, limit_bytes, frozenset(self.workers))

    def _gather(
        self, payloads: Sequence[Payload | None], limit_bytes: int, wanted: frozenset[int]
    ) -> list[Payload | BadPayload]:
        """The payloads of the wanted workers, who are the same in every process."""
        assert len(payloads) == len(self.local_workers)
        empty = torch.empty(0, dtype=torch.uint8)
        # a payload beyond the limit is not sent; its length says why
        messages = [empty if p is None else pack(p) for p in payloads]
        lengths = torch.tensor([len(m) for m in messages], dtype=torch.int64)
        block = torch.cat([lengths.view(torch.uint8), *(m for m in messages if len(m) <= limit_bytes)])
        # payloads of a steady size are sent with their lengths, others in a second all-gather behind them
        recent = self._recent.setdefault((limit_bytes, len(wanted)), deque(maxlen=RECENT))
        # where few workers are wanted, room for the payloads of all would be wasted
        few = len(wanted) < LESS * self.size
        steady = len(recent) == RECENT and max(recent) - min(recent) <= SLACK_BYTES and not few
        heads = [8 * len(share) for share in self._blocks]
        room = max(heads) + (max(recent) if steady else 0)
        arrived = self._all_gather_bytes(block[:room], [room] * self._ranks)
        lengths_by_rank = [part[:head].view(torch.int64).tolist() for part, head in zip(arrived, heads, strict=True)]
        wanted_lengths = [
            [length if worker in wanted else 0 for worker, length in zip(workers, lengths, strict=True)]
            for workers, lengths in zip(self._blocks, lengths_by_rank, strict=True)
        ]
        sent_lengths = [[n if n <= limit_bytes else 0 for n in lengths] for lengths in wanted_lengths]
        sizes = [head + sum(lengths) for head, lengths in zip(heads, sent_lengths, strict=True)]
        rest = self._all_gather_bytes(block[room:], [max(0, size - room) for size in sizes])
        recent.append(max(map(sum, sent_lengths)))
        payloads_of_all: list[Payload | BadPayload] = []
        nonzero = [length for lengths in sent_lengths for length in lengths if length]
        buffers, place = ReceiveBuffers(len(nonzero), statistics.median_low(nonzero or [0])), 0
        for first, second, head, size, lengths in zip(arrived, rest, heads, sizes, wanted_lengths, strict=True):
            pieces = [piece for piece in (first[head : min(size, room)], second) if len(piece)]
            body = pieces[0] if len(pieces) == 1 else torch.cat([empty, *pieces])
            offset = 0
            for length in lengths:
                end = offset + (length if length <= limit_bytes else 0)
                payloads_of_all.append(_open(body[offset:end], length, limit_bytes, partial(buffers.buffer_for, place)))
                place += end > offset
                offset = end
        return payloads_of_all

    def fetch(
        self, payloads: Sequence[Payload | None], workers: Sequence[int], limit_bytes: int
    ) -> list[Payload | BadPayload]:
        """The payloads of the named workers; the others send nothing."""
        wanted = frozenset(workers)
        to_send = [p if worker in wanted else None for worker, p in zip(self.local_workers, payloads, strict=True)]
        arrived = self._gather(to_send, limit_bytes, wanted)
        return [arrived[worker] for worker in workers]

    def mean(self, x: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        """The weighted mean over all workers, by all-reduce of the local sums in the dtype of x."""
        normalized = (weights / total).to(x.device, accumulation_dtype(x.dtype))
        local = (normalized @ x.to(normalized.dtype)).to(self.device, x.dtype)
        self._backend.all_reduce(local)
        return local.to(x.device)

    def all_gather(self, x: Tensor) -> Tensor:
        """The rows of all ranks in the order of the workers. Shapes: (k, m) -> (n, m)."""
        sizes = [len(share) * x.shape[1] * x.element_size() for share in self._blocks]
        flat = x.detach().contiguous().reshape(-1)
        blocks = self._all_gather_bytes(
            flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8), sizes
        )
        rows = [
            b.view(x.dtype).reshape(-1, x.shape[1]) if b.numel() else x.new_empty(len(s), x.shape[1])
            for b, s in zip(blocks, self._blocks, strict=True)
        ]
        return torch.cat(rows).to(x.device)

    def all_to_all(
        self, parts: Sequence[Sequence[Payload | None]], limit_bytes: int
    ) -> list[list[Payload | BadPayload]]:
        """The parts of all workers for those of this process, sent from rank to rank."""
        assert len(parts) == len(self.local_workers)
        messages = [_joined([sent[to] for sent in parts for to in block], limit_bytes) for block in self._blocks]
        sizes = torch.tensor([len(message) for message in messages])
        sizes_of_all = self._all_gather_bytes(sizes.view(torch.uint8), [8 * self._ranks] * self._ranks)
        incoming = [int(each.view(torch.int64)[self.rank]) for each in sizes_of_all]
        arrived = self._backend.all_to_all([message.to(self.device) for message in messages], incoming)
        counts = [len(block) * len(self.local_workers) for block in self._blocks]
        received = [_divided(arrived[r].cpu(), counts[r], limit_bytes) for r in range(self._ranks)]
        held = range(len(self.local_workers))
        return [[part for parts in received for part in parts[to :: len(held)]] for to in held]

    def all_gather_payloads(self, payload: Payload) -> list[Payload]:
        """One payload of each rank, by rank, in every process."""
        message = pack(payload)
        length = torch.tensor([len(message)]).view(torch.uint8)
        sizes = [int(block.view(torch.int64)) for block in self._all_gather_bytes(length, [8] * self._ranks)]
        return [unpack(block) for block in self._all_gather_bytes(message, sizes)]

    def broadcast(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The tree of rank 0, in every process."""
        return from_payload(self.all_gather_payloads(to_payload(tree))[0])

    def send_recv(self, payloads: Mapping[int, Payload]) -> dict[int, Payload]:
        """Sends payloads to single ranks and returns those that came from others, by rank.

        Every rank calls it, also one that has nothing to send.
        """
        outgoing = {r: pack(payload).to(self.device) for r, payload in payloads.items()}
        sizes = torch.tensor([[len(outgoing.get(r, ())) for r in range(self._ranks)]])
        sizes_of_all = self._all_gather_bytes(sizes.view(torch.uint8).flatten(), [8 * self._ranks] * self._ranks)
        incoming = [int(block.view(torch.int64)[self.rank]) for block in sizes_of_all]
        arrived = self._backend.send_recv(outgoing, {r: size for r, size in enumerate(incoming) if size})
        return {r: unpack(message.cpu()) for r, message in arrived.items()}

    def close(self) -> None:
        """Destroys a group of its own, for good; ranks that wait in it for this one get an error."""
        self._backend.close()

    def _all_gather_bytes(self, message: Tensor, sizes: list[int]) -> list[Tensor]:
        """The bytes of every rank; their numbers are `sizes`."""
        if max(sizes) == 0:
            return [message.new_empty(0).cpu() for _ in sizes]
        return [block.cpu() for block in self._backend.all_gather_uneven(message.to(self.device), sizes)]


def _joined(parts: Sequence[Payload | None], limit_bytes: int) -> Tensor:
    """Packed payloads behind their lengths; of one beyond the limit the length only."""
    packed = [torch.empty(0, dtype=torch.uint8) if part is None else pack(part) for part in parts]
    lengths = torch.tensor([len(each) for each in packed], dtype=torch.int64)
    return torch.cat([lengths.view(torch.uint8), *(each for each in packed if len(each) <= limit_bytes)])


def _divided(message: Tensor, count: int, limit_bytes: int) -> list[Payload | BadPayload]:
    """The payloads that `_joined` joined; where lengths and message disagree all are BadPayloads."""
    lengths = message[: 8 * count].view(torch.int64).tolist() if len(message) >= 8 * count else []
    sent = [length if length <= limit_bytes else 0 for length in lengths]
    if len(lengths) < count or min(sent, default=0) < 0 or 8 * count + sum(sent) != len(message):
        return [BadPayload("a message of other than the announced length")] * count
    parts, offset = list[Payload | BadPayload](), 8 * count
    for length, size in zip(lengths, sent, strict=True):
        parts.append(_open(message[offset : offset + size], length, limit_bytes, None))
        offset += size
    return parts


def _open(
    message: Tensor, length: int, limit_bytes: int, room: Callable[[str, int], Tensor] | None
) -> Payload | BadPayload:
    if length > limit_bytes:
        return BadPayload(f"{length} bytes, at most {limit_bytes} allowed")
    if length == 0:
        return BadPayload("nothing arrived")
    try:
        return unpack(message, room)
    except BadPayload as error:
        return error
