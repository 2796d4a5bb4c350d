# SPDX-License-Identifier: Apache-2.0
"""Union-find over dimensions of tensors: dimensions that are joined run over the same neurons, in one order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class Label:
    """A dimension of a tensor: `outer` blocks, in each block all neurons of a node, for each neuron `inner` entries.

    The size of the dimension is outer * neurons of the node * inner.
    """

    node: int
    outer: int = 1
    inner: int = 1


Labels = tuple[Label | None, ...]  # one for each dimension of a tensor; None if its order cannot change


@dataclass
class Neurons:
    """Nodes, each a set of neurons. Nodes that are joined must keep their neurons in one order.

    A node may consist of blocks of another one: the columns of a linear layer behind a flattened image are the image's
    channels, each repeated for every pixel.
    """

    sizes: list[int] = field(default_factory=list)
    _above: list[Label] = field(default_factory=list)  # the node's parent, or itself for a root
    fixed: set[int] = field(default_factory=set)  # nodes whose order cannot change
    met: dict[int, str] = field(default_factory=dict)  # name of the layer that makes the neurons; in forward order
    contracted: set[int] = field(default_factory=set)  # nodes over which a layer sums
    looked_up: set[int] = field(default_factory=set)  # nodes that an embedding makes, whatever else uses its weight
    level: list[set[int]] = field(default_factory=list)  # sets of nodes that must have one size
    put_out: set[int] = field(default_factory=set)  # nodes of the network's outputs

    def new(self, size: int) -> Label:
        """A new node of this many neurons, joined to no other."""
        self.sizes.append(size)
        label = Label(len(self._above))
        self._above.append(label)
        return label

    def find(self, label: Label) -> Label:
        """The same dimension in terms of the root of its node."""
        above = self._above[label.node]
        while above.node != label.node:
            label = Label(above.node, label.outer * above.outer, above.inner * label.inner)
            above = self._above[label.node]
        return label

    def join(self, a: Label | None, b: Label | None) -> None:
        """Gives two dimensions of one size one order; if one of them cannot change, neither can the other."""
        if a is None or b is None:
            self.fixed.update(label.node for label in (a, b) if label is not None)
            return
        a, b = self.find(a), self.find(b)
        if a == b or (a.node != b.node and (self._put(a, b) or self._put(b, a))):
            return
        self.fixed.update((a.node, b.node))

    def contract(self, *labels: Label | None) -> None:
        """Joins dimensions over which a layer sums."""
        for a, b in pairwise(labels):
            self.join(a, b)
        self.contracted.update(label.node for label in labels if label is not None)

    def members(self) -> Iterator[tuple[int, set[int]]]:
        """Every root, and all nodes that are joined to it."""
        members: dict[int, set[int]] = {}
        for node in range(len(self._above)):
            members.setdefault(self.find(Label(node)).node, set()).add(node)
        yield from members.items()

    def _put(self, low: Label, high: Label) -> bool:
        """Makes the first node a child of the second if it consists of blocks of it; returns whether it did."""
        outer, inner = high.outer // low.outer, high.inner // low.inner
        whole = outer * low.outer == high.outer and inner * low.inner == high.inner
        if not whole or outer * self.sizes[high.node] * inner != self.sizes[low.node]:
            return False
        self._above[low.node] = Label(high.node, outer, inner)
        return True
