# SPDX-License-Identifier: Apache-2.0
"""A network of the user's own, made by a function."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from phalanx.core.expression import method, require
from phalanx.core.function import FunctionLike, said_by
from phalanx.data.examples import Examples
from phalanx.data.shape import Shape
from phalanx.models.model import Model

_built: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@method("custom", "model")
class Custom(Model):
    """Any network, made by a function of your own or by the class of the network itself.

    The function is called more than once, with torch's global generator seeded by the run; it makes a new network each
    time, whose initial weights depend on nothing else.

    Shapes: those of the network, for a `task(...)` that knows them.
    Args:
        make: function or class that is called without arguments, or with the shape of an example and the number of
            outputs, and returns the network.
    Raises:
        ValueError: it returns no network, or one that it has returned before.
    """

    make: FunctionLike

    def build_for(self, data: Examples) -> nn.Module:
        if self.make.num_arguments(2) == 0:
            return self._made()
        return self.build(data.shape, data.num_classes)

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return self._made(*(shape, num_classes)[: self.make.num_arguments(2)])

    def _made(self, *given: Any) -> nn.Module:
        try:
            network = self.make(*given)
        except Exception as error:
            raise ValueError(f"{self.make.reference} raised {said_by(error)}") from error
        require(
            isinstance(network, nn.Module),
            f"{self.make.reference} returns a torch.nn.Module, got {type(network).__name__}",
        )
        require(
            network not in _built,
            f"{self.make.reference} returned the same network twice, whose weights would be trained already; make a "
            "new one in each call",
        )
        _built.add(network)
        return network
