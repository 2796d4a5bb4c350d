# SPDX-License-Identifier: Apache-2.0
"""A run in progress as one checkpoint, and a run that goes on from one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phalanx.core.trees import from_payload, merge, own, to_payload
from phalanx.training.accusations import WorkerStats
from phalanx.training.checkpoint import Checkpoint
from phalanx.training.run_folder import RunFolder

if TYPE_CHECKING:
    from phalanx.training.trainer import Trainer


def checkpoint(trainer: Trainer, folder: RunFolder | None) -> None:
    """Every process gives its workers' memories; rank 0, which has the folder, writes them."""
    world = trainer.world
    if world.serves and folder is None:
        return
    states = [trainer.kept]
    # where a run has ended nobody goes on from what workers elsewhere remember
    if len(world.ids) < world.size and trainer.step < trainer.config.rounds:
        states = [from_payload(part) for part in world.collect(to_payload(trainer.kept))]
    if folder is None:
        return
    tree = {
        **trainer.learner.to_tree(),
        "state": merge(states),
        "answers": {str(worker): answer for worker, answer in trainer.answers.items()},
        "before": trainer.before,
        "ledger": trainer.ledger.to_json(),
    }
    folder.checkpoint(Checkpoint(trainer.step, trainer.text, tree))


def resume(trainer: Trainer, point: Checkpoint | None) -> None:
    """Rank 0 has read the checkpoint; every process takes the whole of it but other workers' memories."""
    tree = trainer.world.share({"step": point.step, **point.tree} if point is not None else {})
    if not tree:
        return
    trainer.step = tree["step"]
    trainer.learner.load(tree, trainer.config.phase_at(max(trainer.step - 1, 0))[0])
    trainer.elsewhere = tree.get("state", {}) if trainer.world.serves else {}
    trainer.keep(own(tree.get("state", {}), trainer.world.ids))
    trainer.answers = {int(worker): answer for worker, answer in tree.get("answers", {}).items()}
    trainer.before = tree.get("before", {})
    trainer.ledger = WorkerStats.from_json(tree["ledger"])
