# SPDX-License-Identifier: Apache-2.0
"""Which dimensions of which tensors run over the same neurons, found by joining them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class Label:
    """A dimension of a tensor: outer blocks, in each the neurons of a node, of each inner entries."""

    node: int
    outer: int = 1
    inner: int = 1


Labels = tuple[Label | None, ...]  # of the dimensions of a tensor; None where the order cannot be another one


@dataclass
class Neurons:
    """Nodes, each a set of neurons, of which those that are joined must be in one order.

    A node may be another one in blocks: the columns of a linear layer behind a flattened map are its channels, each as
    often as there are pixels.
    """

    sizes: list[int] = field(default_factory=list)
    _above: list[Label] = field(default_factory=list)  # a node is its own where it stands for itself
    fixed: set[int] = field(default_factory=set)  # their order is no free choice
    met: dict[int, str] = field(default_factory=dict)  # made by a layer of this name, in the order of the forward pass
    contracted: set[int] = field(default_factory=set)  # a layer sums over them
    looked_up: set[int] = field(default_factory=set)  # an embedding makes them, whatever else is done with its weight
    level: list[set[int]] = field(default_factory=list)  # nodes that must be of one size
    put_out: set[int] = field(default_factory=set)  # the network's outputs

    def new(self, size: int) -> Label:
        """A node of its own."""
        self.sizes.append(size)
        label = Label(len(self._above))
        self._above.append(label)
        return label

    def find(self, label: Label) -> Label:
        """The same dimension, told by the node that stands for all that are joined."""
        above = self._above[label.node]
        while above.node != label.node:
            label = Label(above.node, label.outer * above.outer, above.inner * label.inner)
            above = self._above[label.node]
        return label

    def join(self, a: Label | None, b: Label | None) -> None:
        """Two dimensions of one size have one order; where one has none to choose, the other neither."""
        if a is None or b is None:
            self.fixed.update(label.node for label in (a, b) if label is not None)
            return
        a, b = self.find(a), self.find(b)
        if a == b or (a.node != b.node and (self._put(a, b) or self._put(b, a))):
            return
        self.fixed.update((a.node, b.node))

    def contract(self, *labels: Label | None) -> None:
        """Joins dimensions over which is summed."""
        for a, b in pairwise(labels):
            self.join(a, b)
        self.contracted.update(label.node for label in labels if label is not None)

    def members(self) -> Iterator[tuple[int, set[int]]]:
        """Every node that stands for others or itself, and all that are joined to it."""
        found: dict[int, set[int]] = {}
        for node in range(len(self._above)):
            found.setdefault(self.find(Label(node)).node, set()).add(node)
        yield from found.items()

    def _put(self, low: Label, high: Label) -> bool:
        """Puts the first under the second, if it is the second in blocks."""
        outer, inner = high.outer // low.outer, high.inner // low.inner
        whole = outer * low.outer == high.outer and inner * low.inner == high.inner
        if not whole or outer * self.sizes[high.node] * inner != self.sizes[low.node]:
            return False
        self._above[low.node] = Label(high.node, outer, inner)
        return True
