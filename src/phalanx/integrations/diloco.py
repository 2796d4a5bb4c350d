# SPDX-License-Identifier: Apache-2.0
"""Many local steps between two exchanges, in the user's own training loop: DiLoCo.

outer = phalanx.DiLoCo(model, "chain(gather(qsgd(bits=4)), mean())", every=50)
for x, y in batches:
    loss_function(model(x), y).backward()
    optimizer.step()                # of this process alone, with its own moments
    optimizer.zero_grad()
    outer()                         # every 50th time: the changes of all processes make one outer step
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from phalanx.attacks.adversary import Threat
from phalanx.core.expression import require, require_entries
from phalanx.core.parser import parse
from phalanx.core.stage import Stage
from phalanx.core.world import Collective
from phalanx.integrations.gradient_exchange import Listener, open_session
from phalanx.integrations.handshake import Weights
from phalanx.training.optim import Decay, ServerOptimizer, Sgd


class DiLoCo:
    """Every so many local steps, moves all processes' models to one place: an outer step along their mean change.

    The row is the weights of the last outer step minus those of now; floating-point buffers travel in it and are
    installed. Where an exchange is lost, everybody goes back to the last outer step.

    Args:
        model: a plain module, the same on every process; in torch.compile or not, but not in DistributedDataParallel.
        scheme: a stage or its expression; robust rules and codecs as everywhere.
        every: H, local steps between two exchanges, >= 1.
        optimizer: the outer optimizer or its expression; Nesterov's momentum by default.
        world: a new process group of the same ranks as the default one when None.
        byzantine, seed, on_excluded, on_accused, exclude_after: as for `SchemeSession`, which is the attribute
            `session` and holds the state.
        weights: as for `phalanx.exchange`: "broadcast" or "refuse" initial weights that differ.
    Raises:
        ValueError: as for `phalanx.exchange`; also where the processes differ in `every` or in the outer optimizer.
    Source: Douillard et al., DiLoCo: Distributed Low-Communication Training of Language Models, 2023, arXiv:2311.08105,
        Algorithm 1; lr = 0.7 and momentum = 0.9 as there.
    """

    def __init__(
        self,
        model: nn.Module,
        scheme: Stage | str = "chain(gather(dense()), mean())",
        every: int = 50,
        optimizer: ServerOptimizer | str | None = None,
        *,
        world: Collective | None = None,
        byzantine: Threat | None = None,
        seed: int = 0,
        weights: Weights = "broadcast",
        on_excluded: Listener | None = None,
        on_accused: Listener | None = None,
        exclude_after: int | None = None,
    ) -> None:
        def settings() -> dict[str, object]:
            require(every >= 1, f"outer steps come every >= 1 local steps, got every={every}")
            return {"every": every, "optimizer": _outer_optimizer(optimizer)}

        self.model, self.every, self.steps = model, every, 0
        options = {"on_excluded": on_excluded, "on_accused": on_accused, "exclude_after": exclude_after}
        self._module, self.layout, self.session = open_session(
            "DiLoCo", model, scheme, world, weights, settings, byzantine=byzantine, seed=seed, **options
        )
        allocation = self.session.scheme.assign(self.session.world.size)
        require(
            allocation is None or not allocation.separate,
            f"{self.session.scheme!r} adds up the rows of several units, and an outer step has one change a process; "
            "choose another scheme, such as chain(gather(dense()), median())",
        )
        self._finish = made = _outer_optimizer(optimizer)
        have = self.layout.tensors(self._module)
        self._start = {n: nn.Parameter(have[n].detach().clone()) for n in self.layout.head.names}
        self._optimizer = made.build(list(self._start.values()))
        self._buffers = {n: have[n].clone() for n in self.layout.installed}

    @torch.no_grad()
    def __call__(self, weight: float = 1.0) -> dict[str, Any] | None:
        """Counts a local step; exchanges when it is time, and then returns the round's measurements.

        Args:
            weight: examples behind this process's steps.
        Returns:
            None between two exchanges; else what `Exchange` returns.
        """
        self.steps += 1
        if self.steps % self.every:
            return None
        self.session.same_parameters(self._module, self.layout, "DiLoCo")
        have = self.layout.tensors(self._module)
        changes = {n: self._start[n] - t if n in self._start else t for n, t in have.items()}
        index = self.session.index
        row, measured = self.session.aggregate(self.layout.join(changes), self.layout, index=index, weight=weight)
        self.session.index += 1
        if row is not None and not measured["lost"]:
            for name, part in self.layout.split(row).items():
                if name in self._start:
                    self._start[name].grad = part.view_as(self._start[name]).clone()
                else:
                    self._buffers[name].copy_(part)
            for group in self._optimizer.param_groups:
                group["lr"] = self._finish.rate(index, index + 1)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        for name, start in {**self._start, **self._buffers}.items():
            have[name].copy_(start)
        return measured

    def state_dict(self) -> dict[str, Any]:
        """This process's part of the user's checkpoint, beside the model's and the inner optimizer's."""
        start = {name: p.detach().clone() for name, p in {**self._start, **self._buffers}.items()}
        return {
            "session": self.session.state_dict(),
            "steps": self.steps,
            "start": start,
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken; ValueError if it was taken from another scheme."""
        require_entries(saved, ("session", "steps", "start", "optimizer"))
        self.session.load_state_dict(saved["session"])
        self.steps = saved["steps"]
        with torch.no_grad():
            for name, p in {**self._start, **self._buffers}.items():
                p.copy_(saved["start"][name])
        self._optimizer.load_state_dict(saved["optimizer"])


def _outer_optimizer(optimizer: ServerOptimizer | str | None) -> ServerOptimizer:
    made = parse(optimizer) if isinstance(optimizer, str) else optimizer or Sgd(lr=0.7, momentum=0.9, nesterov=True)
    if not isinstance(made, ServerOptimizer) or made.installs:
        raise ValueError(f"{made!r} is no outer optimizer; write one such as sgd(lr=0.7, momentum=0.9)")
    require(
        made.schedule is None or isinstance(made.schedule, Decay),
        f"outer steps have no end that {made.schedule!r} could plan for; use decay(...) or none",
    )
    return made
