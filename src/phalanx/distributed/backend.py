# SPDX-License-Identifier: Apache-2.0
"""The operations that a collective of processes needs of a network, and stand-ins that replace or record them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

Kind = Literal["gather", "reduce"]  # all-gather, all-reduce
CallKind = Literal[Kind, "share"]  # and what is divided by the number of processes: all-to-all, all-gather of shares
LESS = 0.75  # of the bytes of a padded all-gather; fewer are worth one more exchange


def carried(sizes: Sequence[int]) -> int:
    """The bytes that each process receives for messages of these lengths: in pieces if that is fewer, else padded."""
    padded, pieces = len(sizes) * max(sizes), sum(sizes) + max(sizes)
    return pieces if pieces < LESS * padded else padded


class Backend(Protocol):
    """What connects the processes of a job. Each process calls the same methods in the same order."""

    @property
    def rank(self) -> int:
        """The rank of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """The number of processes."""
        ...

    @property
    def device(self) -> torch.device:
        """The device that tensors must be on to be sent."""
        ...

    @property
    def echoes(self) -> bool:
        """Whether what comes from other processes is what this one sends."""
        ...

    def all_gather(self, mine: Tensor) -> list[Tensor]:
        """The tensors of all processes, by rank; they have equal lengths."""
        ...

    def all_gather_uneven(self, mine: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """The tensors of all processes, by rank; their lengths are `sizes`."""
        ...

    def all_reduce(self, x: Tensor) -> None:
        """Replaces x by the sum over all processes, in place."""
        ...

    def send_recv(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, int]) -> dict[int, Tensor]:
        """Sends bytes to single processes and receives the given numbers of bytes from others, by rank."""
        ...

    def all_to_all(self, outgoing: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Sends each process its bytes, by rank, and returns those that came from each, of these sizes."""
        ...

    def close(self) -> None:
        """The last call, for a backend of one's own: processes that wait for this one get an error."""
        ...


class TorchBackend:
    """A process group of torch.distributed, gloo or NCCL; the default group when None.

    Raises:
        ValueError: torch.distributed is not initialised.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                "ProcessGroupCollective needs torch.distributed: run under torchrun and call init_process_group first"
            )
        self._group, self.echoes = group, False
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        nccl = dist.get_backend(group) == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def all_gather(self, mine: Tensor) -> list[Tensor]:
        blocks = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(blocks, mine, group=self._group)
        return blocks

    def all_gather_uneven(self, mine: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        longest = max(sizes)
        if carried(sizes) < self.size * longest:
            return self._in_pieces(mine, sizes)
        padded = torch.cat([mine, mine.new_zeros(longest - len(mine))]) if len(mine) < longest else mine
        return [block[:size] for block, size in zip(self.all_gather(padded), sizes, strict=True)]

    def all_reduce(self, x: Tensor) -> None:
        dist.all_reduce(x, group=self._group)

    def send_recv(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, int]) -> dict[int, Tensor]:
        arrived = {r: torch.empty(size, dtype=torch.uint8, device=self.device) for r, size in incoming.items()}
        operations = [dist.P2POp(dist.isend, t, self._global(r), self._group) for r, t in outgoing.items()]
        operations += [dist.P2POp(dist.irecv, t, self._global(r), self._group) for r, t in arrived.items()]
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()
        return arrived

    def all_to_all(self, outgoing: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        others = [r for r in range(self.size) if r != self.rank]
        sent = {r: outgoing[r] for r in others if len(outgoing[r])}
        arrived = self.send_recv(sent, {r: sizes[r] for r in others if sizes[r]})
        arrived[self.rank] = outgoing[self.rank]
        return [arrived.get(r, outgoing[r][:0]) for r in range(self.size)]

    def _in_pieces(self, mine: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Gathers all messages as one in equal pieces: each process gets one piece first, then all get all pieces.

        A padded all-gather brings each process n times the longest message; this brings it their sum, and whoever has a
        message sends it once more.
        """
        ends = list(accumulate(sizes))
        each = -(-ends[-1] // self.size)

        def part(owner: int, piece: int) -> tuple[int, int]:
            start = ends[owner] - sizes[owner]
            return max(start, piece * each), min(ends[owner], (piece + 1) * each)

        def length(owner: int, piece: int) -> int:
            low, high = part(owner, piece)
            return max(0, high - low)

        first, everyone = ends[self.rank] - sizes[self.rank], range(self.size)
        cuts = {piece: part(self.rank, piece) for piece in everyone if length(self.rank, piece)}
        outgoing = {piece: mine[low - first : high - first] for piece, (low, high) in cuts.items()}
        incoming = {owner: size for owner in everyone if (size := length(owner, self.rank))}
        own = {self.rank: outgoing.pop(self.rank)} if self.rank in outgoing else {}
        incoming.pop(self.rank, None)
        arrived = own | self.send_recv(outgoing, incoming)
        block = torch.cat([mine[:0], *(arrived[owner] for owner in sorted(arrived))])
        whole = torch.cat(self.all_gather(torch.cat([block, block.new_zeros(each - len(block))])))
        return [whole[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def close(self) -> None:
        # gloo closes its connections when the last reference goes
        group = vars(self).pop("_group", None)
        if group is not None and dist.is_initialized():
            # gone already where all groups were destroyed
            with suppress(ValueError):
                dist.destroy_process_group(group)

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)


@dataclass(frozen=True)
class Loopback:
    """A backend without other processes: each of them seems to send what this one sends."""

    rank: int
    size: int
    device: torch.device
    echoes: bool = True

    def all_gather(self, mine: Tensor) -> list[Tensor]:
        return [mine.clone() for _ in range(self.size)]

    def all_gather_uneven(self, mine: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [mine[:size].clone() for size in sizes]

    def all_reduce(self, x: Tensor) -> None:
        x *= self.size

    def send_recv(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, int]) -> dict[int, Tensor]:
        return {r: torch.zeros(size, dtype=torch.uint8, device=self.device) for r, size in incoming.items()}

    def all_to_all(self, outgoing: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        return [outgoing[self.rank].clone() for _ in sizes]

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Call:
    """The record of a collective operation.

    Args:
        bytes: length of the message of one process; of a share, of the messages to all processes.
        seconds: in this process, from the call to its return.
    """

    kind: CallKind
    bytes: int
    seconds: float


class Recording:
    """Another backend, with a list of the calls."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.calls: list[Call] = []

    @property
    def rank(self) -> int:
        return self._backend.rank

    @property
    def size(self) -> int:
        return self._backend.size

    @property
    def device(self) -> torch.device:
        return self._backend.device

    @property
    def echoes(self) -> bool:
        return self._backend.echoes

    def all_gather(self, mine: Tensor) -> list[Tensor]:
        began = time.perf_counter()
        blocks = self._backend.all_gather(mine)
        self._note("gather", mine, began)
        return blocks

    def all_gather_uneven(self, mine: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        began = time.perf_counter()
        blocks = self._backend.all_gather_uneven(mine, sizes)
        # an all-gather of messages of this length moves as much
        size = -(-carried(sizes) // self.size)
        self.calls.append(Call("gather", size, time.perf_counter() - began))
        return blocks

    def all_reduce(self, x: Tensor) -> None:
        began = time.perf_counter()
        self._backend.all_reduce(x)
        self._note("reduce", x, began)

    def send_recv(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, int]) -> dict[int, Tensor]:
        return self._backend.send_recv(outgoing, incoming)

    def all_to_all(self, outgoing: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        began = time.perf_counter()
        arrived = self._backend.all_to_all(outgoing, sizes)
        size = sum(tensor.numel() * tensor.element_size() for tensor in outgoing)
        self.calls.append(Call("share", size, time.perf_counter() - began))
        return arrived

    def close(self) -> None:
        self._backend.close()

    def _note(self, kind: Kind, x: Tensor, began: float) -> None:
        self.calls.append(Call(kind, x.numel() * x.element_size(), time.perf_counter() - began))
