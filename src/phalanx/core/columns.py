# SPDX-License-Identifier: Apache-2.0
"""The columns of a row, divided among owners, and numbers about whole rows that the owners add up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from phalanx.core.layout import Layout
from phalanx.core.trees import State
from phalanx.core.world import Collective

_SMALLEST = 64  # entries of a block; shorter ones would take longer to cut than to send
_LARGEST = 1 << 16  # entries of a block, unless one grain has more
_BLOCKS = 64  # of an owner: the longest shard has some 1.5 % more entries than the mean one
_ALL_BLOCKS = 4096  # of all owners; more would take longer to cut than to send
_LEAST_BLOCKS = 8


class Block(NamedTuple):
    """A run of entries of one tensor, all with one owner."""

    tensor: int
    start: int  # in the row
    stop: int
    offset: int  # of the first entry in its tensor


@dataclass(frozen=True)
class Shard:
    """The columns of one owner, in the order of the row.

    Args:
        blocks: of directions, then of installed values.
        layout: has a tensor for each block, named after the tensor that the block is cut from.
    """

    blocks: tuple[Block, ...]
    layout: Layout

    @cached_property
    def directions(self) -> Shard:
        """The shard's columns of directions only, which a codec codes."""
        count = len(self.blocks) - self.layout.num_installed
        return self if count == len(self.blocks) else Shard(self.blocks[:count], self.layout.head)

    @cached_property
    def by_tensor(self) -> Layout:
        """The layout of the same columns with one vector for all blocks of a tensor, so that codes get long vectors.

        A name says which entries these are, for a memory that goes by names.
        """
        groups: dict[int, list[Block]] = {}
        for block in self.blocks:
            groups.setdefault(block.tensor, []).append(block)
        names = dict(zip(self.blocks, self.layout.names, strict=True))
        counts = [sum(block.stop - block.start for block in group) for group in groups.values()]
        return Layout(
            tuple(
                names[group[0]] + (f" to {group[-1].offset}, {count} entries" if len(group) > 1 else "")
                for group, count in zip(groups.values(), counts, strict=True)
            ),
            tuple(torch.Size([count]) for count in counts),
            dtype=self.layout.dtype,
        )

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """The columns as slices of the row; neighbouring blocks are one slice."""
        return _merged([(block.start, block.stop) for block in self.blocks])

    def take(self, row: Tensor) -> Tensor:
        """The shard's entries of a row. Shapes: (..., d) -> (..., shard.layout.d)."""
        if not self.spans:
            return row[..., :0]
        return torch.cat([row[..., span] for span in self.spans], dim=-1)

    def put(self, row: Tensor, entries: Tensor) -> None:
        """Writes the shard's entries into a row. Shapes: (..., d), (..., shard.layout.d)."""
        sizes = [span.stop - span.start for span in self.spans]
        for span, part in zip(self.spans, entries.split(sizes, dim=-1) if sizes else (), strict=True):
            row[..., span] = part


@lru_cache(maxsize=64)
def divide(layout: Layout, owners: int, grain: int | None, without: frozenset[int] = frozenset()) -> tuple[Shard, ...]:
    """The columns of each owner: blocks of every tensor by turns, so that large entries of one tensor spread.

    The next block goes to the owner with the fewest entries so far. The places of the cuts depend on layout, owners and
    grain only, and every block but the last one of a tensor has a multiple of `grain` entries.

    Args:
        grain: entries of a tensor's direction between two places where it can be cut; None cuts no tensor of
            directions. Installed values are cut anywhere.
        without: owners that get nothing.
    """
    share = max(_LEAST_BLOCKS, min(_BLOCKS, _ALL_BLOCKS // owners))
    wanted = max(_SMALLEST, min(_LARGEST, layout.d // (owners * share)))
    num_directions = len(layout.names) - layout.num_installed
    loads = [math.inf if owner in without else 0 for owner in range(owners)]
    blocks = [list[Block]() for _ in range(owners)]
    row = 0
    for tensor, size in enumerate(layout.sizes):
        unit = grain if tensor < num_directions else 1
        step = max(1, size) if unit is None else unit * max(1, round(wanted / unit))
        # a tensor without entries has an owner too, so that somebody looks at messages without entries
        for offset in range(0, max(size, 1), step):
            stop = min(offset + step, size)
            owner = loads.index(min(loads))
            blocks[owner].append(Block(tensor, row + offset, row + stop, offset))
            loads[owner] += stop - offset
        row += size
    return tuple(Shard(tuple(own), _layout_of(own, layout)) for own in blocks)


def _layout_of(blocks: Sequence[Block], layout: Layout) -> Layout:
    """The layout of these columns: a tensor that is there as a whole keeps its name and shape."""
    names, shapes = [], []
    for block in blocks:
        name, count = layout.names[block.tensor], block.stop - block.start
        whole = count == layout.sizes[block.tensor]
        names.append(name if whole else f"{name}[{block.offset}:{block.offset + count}]")
        shapes.append(layout.shapes[block.tensor] if whole else torch.Size([count]))
    first_installed = len(layout.names) - layout.num_installed
    num_installed = sum(block.tensor >= first_installed for block in blocks)
    return Layout(tuple(names), tuple(shapes), num_installed, layout.dtype)


def _merged(spans: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    merged: list[list[int]] = []
    for start, stop in spans:
        if merged and merged[-1][1] == start:
            merged[-1][1] = stop
        else:
            merged.append([start, stop])
    return tuple(slice(start, stop) for start, stop in merged)


class Undecided(ValueError):
    """The owners of some columns report different numbers, and no number has a majority."""


def owners_of(shards: Sequence[Shard], r: int, without: frozenset[int] = frozenset()) -> tuple[tuple[int, ...], ...]:
    """For each shard its r owners: the worker of the same position and those behind it, in a ring of all others.

    Args:
        without: positions of workers that own nothing.
    """
    ring = [position for position in range(len(shards)) if position not in without]
    count = min(r, len(ring))
    places = {position: i for i, position in enumerate(ring)}
    return tuple(
        tuple(ring[(places[position] + k) % len(ring)] for k in range(count)) if position in places else ()
        for position in range(len(shards))
    )


@dataclass(frozen=True)
class Columns:
    """Which columns of the whole rows a stack has, and how its processes add up over all of them.

    Args:
        whole: layout of the whole rows.
        shards: all of them, one for each of `world.workers`.
        owners: for each shard the positions of the workers that hold it.
        held: the shards that are here; those of the workers in `world.local_workers`.
        spans: for each shard in `held`, slices of the stack's columns, one for each block.
        layout: of the stack's columns, which are those of the blocks of all shards in `held` in the order of the row.
        starts: the place in the whole row of the first column of each slice in `spans`.
        outvoted: takes the workers whose numbers about a shard are not those of the majority of its owners.
    """

    whole: Layout
    shards: tuple[Shard, ...]
    owners: tuple[tuple[int, ...], ...]
    held: tuple[int, ...]
    world: Collective
    spans: tuple[tuple[slice, ...], ...]
    starts: tuple[tuple[int, ...], ...]
    layout: Layout
    outvoted: set[int]

    @staticmethod
    def of(
        whole: Layout, shards: tuple[Shard, ...], world: Collective, owners: tuple[tuple[int, ...], ...] | None = None
    ) -> Columns:
        """The columns of the owners in this process; each worker owns one shard unless `owners` says otherwise."""
        owners = owners or owners_of(shards, 1)
        here = {world.workers.index(worker) for worker in world.local_workers}
        held = tuple(shard for shard, positions in enumerate(owners) if here & set(positions))
        blocks = sorted(block for shard in held for block in shards[shard].blocks)
        places, end = dict[Block, slice](), 0
        for block in blocks:
            places[block] = slice(end, end + block.stop - block.start)
            end = places[block].stop
        return Columns(
            whole=whole,
            shards=shards,
            owners=owners,
            held=held,
            world=world,
            spans=tuple(tuple(places[block] for block in shards[shard].blocks) for shard in held),
            starts=tuple(tuple(block.start for block in shards[shard].blocks) for shard in held),
            layout=_layout_of(blocks, whole),
            outvoted=set(),
        )

    @cached_property
    def holds(self) -> tuple[tuple[int, ...], ...]:
        """For each worker the shards that it owns, ascending."""
        return tuple(
            tuple(shard for shard, positions in enumerate(self.owners) if position in positions)
            for position in range(len(self.shards))
        )

    @cached_property
    def local(self) -> tuple[int, ...]:
        """The positions of the workers of this process."""
        return tuple(self.world.workers.index(worker) for worker in self.world.local_workers)

    def reports(self, mine: Mapping[tuple[int, int], Tensor], like: Tensor) -> dict[int, list[Tensor]]:
        """What each owner of each shard reports of it, in the order of `owners`.

        Every process calls it at the same time.

        Args:
            mine: by position of a worker of this process and by shard, its report, of the shape of `like`.
        """
        width = max(map(len, self.holds))
        table = torch.zeros(len(self.local), width, *like.shape, dtype=like.dtype)
        for row, position in zip(table, self.local, strict=True):
            for place, shard in zip(row, self.holds[position], strict=False):
                place.copy_(mine[position, shard])
        everyone = self.world.all_gather(table.reshape(len(self.local), width * like.numel()))
        everyone = everyone.reshape(len(self.shards), width, *like.shape)
        return {
            shard: [everyone[position, self.holds[position].index(shard)] for position in positions]
            for shard, positions in enumerate(self.owners)
        }

    def total(self, part: Callable[[slice], Tensor], like: Tensor) -> Tensor:
        """The sum over the columns of all owners, the same bits in every process and for every division into processes.

        Every process calls it at the same time. What most owners of a shard report of it counts.

        Args:
            part: the sum over some of the stack's columns, of the shape of `like`. It copies these columns first where
                the last bits of a sum depend on addresses and strides, as those of matrix products do.
            like: gives shape, dtype and device.
        Raises:
            Undecided: there is no majority among the owners of a shard.
        """
        sums = torch.zeros(len(self.held), *like.shape, dtype=like.dtype)
        for mine, spans in zip(sums, self.spans, strict=True):
            for span in spans:
                mine += part(span).to(mine)
        return self._added(sums).to(like.device)

    def _added(self, sums: Tensor) -> Tensor:
        """Adds up a report about each shard in `held`. Shapes: (number held, ...) -> (...)."""
        by_shard = dict(zip(self.held, sums, strict=True))
        mine = {(position, shard): by_shard[shard] for position in self.local for shard in self.holds[position]}
        result = torch.zeros(sums.shape[1:], dtype=sums.dtype)
        for shard, reports in self.reports(mine, result).items():
            if reports:
                result += self.agreed(shard, reports)
        return result

    def agreed(self, shard: int, reports: Sequence[Tensor]) -> Tensor:
        """The report of most owners of a shard; the others are noted in `outvoted`.

        Raises:
            Undecided: no report has a majority.
        """
        if len(reports) == 1:
            return reports[0]
        texts = [report.numpy().tobytes() for report in reports]
        winner = max(texts, key=texts.count)
        workers = [self.world.workers[position] for position in self.owners[shard]]
        if 2 * texts.count(winner) <= len(texts):
            raise Undecided(f"workers {', '.join(map(str, workers))} own the same columns and report different numbers")
        self.outvoted.update(worker for worker, text in zip(workers, texts, strict=True) if text != winner)
        return reports[texts.index(winner)]

    @cached_property
    def _names_elsewhere(self) -> frozenset[str]:
        return frozenset(name for shard in self.shards for name in shard.layout.names) - set(self.layout.names)

    def own(self, state: State) -> State:
        """The state of a stage without memories by name that belong to columns of other processes.

        A process that resumes has read those of all, and would save them again when they are old.
        """
        return {
            key: self.own(value) if isinstance(value, dict) else value
            for key, value in state.items()
            if isinstance(value, dict) or key not in self._names_elsewhere
        }

    @property
    def directions(self) -> Columns:
        """The columns of directions only."""
        return self._part(0, self.layout.stepped, 0, self.whole.head, self.layout.head)

    @property
    def installed(self) -> Columns:
        """The columns of installed values only."""
        return self._part(self.layout.stepped, self.layout.d, self.whole.stepped, self.whole.tail, self.layout.tail)

    def _part(self, low: int, high: int, first: int, whole: Layout, layout: Layout) -> Columns:
        kept = [
            [
                (slice(span.start - low, span.stop - low), start - first)
                for span, start in zip(spans, starts, strict=True)
                # no block has both directions and installed values
                if low <= span.start and span.stop <= high
            ]
            for spans, starts in zip(self.spans, self.starts, strict=True)
        ]
        return replace(
            self,
            whole=whole,
            spans=tuple(tuple(span for span, _ in each) for each in kept),
            starts=tuple(tuple(start for _, start in each) for each in kept),
            layout=layout,
        )

    def first(self, rows: Tensor, count: int) -> Tensor:
        """The first `count` columns of the whole rows, or all if they are fewer, in float64 on the CPU."""
        count = min(count, self.whole.d)
        found = torch.zeros(len(self.held), len(rows), count, dtype=torch.float64)
        for mine, spans, starts in zip(found, self.spans, self.starts, strict=True):
            for span, start in zip(spans, starts, strict=True):
                if start < count:
                    stop = min(count, start + span.stop - span.start)
                    mine[:, start:stop] = rows[:, span.start : span.start + stop - start]
        return self._added(found)
