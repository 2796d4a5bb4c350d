# SPDX-License-Identifier: Apache-2.0
"""A worker's half of a run, in a process that plays some workers of a server elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from phalanx.core.payload import Payload
from phalanx.core.round import Round
from phalanx.core.stage import memory_key
from phalanx.core.trees import copied_tree, from_payload
from phalanx.core.wire_stage import Upload, worker_half
from phalanx.core.world import LocalWorld
from phalanx.training.model_state import PhaseModels
from phalanx.training.phase import Run
from phalanx.training.trainer import Trainer


class WorkerRuntime:
    """What a process has at hand for its workers: the run, its data and model, and what they remember.

    Args:
        workers: that are played here.
    """

    def __init__(self, run: Run, workers: tuple[int, ...]) -> None:
        self.run, self.workers = run, workers
        self.trainer = Trainer(run, LocalWorld(run.workers, workers))
        self._first = copied_tree(self.trainer.model.state_dict())
        self.index = -1

    def seat(self, workers: tuple[int, ...]) -> None:
        """Becomes the desk of other workers, as if it were new; the data stays."""
        self.workers, self.index = workers, -1
        self.trainer.world = LocalWorld(self.run.workers, workers)
        self.trainer.answers = {}
        self.trainer.keep({})
        self.trainer.learner.follow({}, self._first)

    def work(self, index: int, order: Payload) -> tuple[dict[int, Upload], Tensor]:
        """What the chosen workers offer the server in round `index`, and numbers (k, 2) of all workers played here.

        Args:
            order: as `Opened.order` writes it.
        """
        run, trainer = self.run, self.trainer
        asked = from_payload(order)
        changed = trainer.learner.follow(asked.get("shapes", {}), asked.get("model", {}))
        trainer.answers = {int(worker): answer for worker, answer in asked.get("answers", {}).items()}
        number, at = run.phase_at(index)
        phase = run.phases[number]
        entered = self.index >= 0 and number != run.phase_at(self.index)[0]
        if entered or (self.index >= 0 and changed and phase.surgery is not None):
            trainer.keep({})
        memories = {w: trainer.memories.get(memory_key(w, received=False), {}) for w in self.workers}
        able = [w for w in asked["clients"].tolist() if w in memories and phase.work.ready(at, memories[w])]
        stack, losses = trainer.work(index, able)
        byzantine = run.byzantine.at(index, run.workers, run.seed)
        round = Round(index, run.seed, byzantine, trainer.world, begins=at == 0 or changed)
        self.index = index
        offers, trainer.state = worker_half(phase.scheme, stack, trainer.state, round)
        return dict(zip(stack.ids, offers, strict=True)), torch.stack([losses, torch.zeros_like(losses)], dim=1)

    @property
    def kept(self) -> dict[str, Any]:
        """All that the next round needs, should another process play these workers then; `keep` is the inverse."""
        learner = self.trainer.learner
        number, at = self.run.phase_at(self.index + 1)
        over = self.index + 1 == self.run.rounds
        asked = None if over else self.run.phases[number].work.asks(PhaseModels(learner, number, self.index + 1), at)
        # what the server sends by itself need not be kept
        model = {} if asked is None else {n: t for n, t in learner.model.state_dict().items() if n not in set(asked)}
        return {**self.trainer.kept, "shapes": learner.shapes, "model": model, "index": self.index}

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Goes on from what another desk has kept."""
        self.trainer.keep(dict(kept))
        self.index = kept.get("index", -1)
        if self.index >= 0:
            self.trainer.learner.follow(kept.get("shapes", {}), kept.get("model", {}))
