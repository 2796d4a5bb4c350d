# SPDX-License-Identifier: Apache-2.0
"""A model whose weights another run has trained."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from phalanx.core.expression import method, require
from phalanx.core.folder_lock import folder_lock
from phalanx.data.examples import Examples
from phalanx.data.files import data_folder
from phalanx.models.model import Model, Shape
from phalanx.training.phase import Run
from phalanx.training.run_folder import FORMAT, RunFolder, versions


@method("pretrained", "model")
class Pretrained(Model):
    """The network that another run ends with; it is trained at its first use and kept on disk.

    The run's folder lies under trained/ in the folder of the data sets, named by a hash of the run, of the versions
    that can change a number and of the checkpoint format. Processes that want it at once wait for the one that trains;
    one that is stopped goes on from its checkpoint the next time.

    Args:
        run: a whole run; what it does to the shape of its model, by surgery or matching, is refused.
        drawn: draws the seed of that run from torch's global generator, so that every seed of the outer run starts from
            another network; else all start from the same one.
    """

    run: Run
    drawn: bool = False

    def validate(self) -> None:
        self.run.check()
        for phase in self.run.phases:
            plain = phase.surgery is None and not phase.optimizer.installs
            require(plain, f"pretrained needs phases that keep the shape of their model, got {phase!r}")

    @property
    def channels_last(self) -> bool:  # type: ignore[override]
        return self.run.model.channels_last

    def build_for(self, data: Examples) -> nn.Module:
        return self._trained(self.run.model.build_for(data), data.shape, data.num_classes)

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return self._trained(self.run.model.build(shape, num_classes), shape, num_classes)

    def _trained(self, model: nn.Module, shape: Shape, num_classes: int) -> nn.Module:
        data = self.run.data.load()
        have, want = (data.shape, data.num_classes), (shape, num_classes)
        require(have == want, f"{self.run.data!r} has {have} inputs and classes, and the data of this run {want}")
        run = replace(self.run, seed=int(torch.randint(2**31, ()))) if self.drawn else self.run
        model.load_state_dict(_weights(run, str(data_folder())))
        return model


@lru_cache(maxsize=4)
def _weights(run: Run, root: str) -> dict[str, Tensor]:
    from blake3 import blake3

    # imported here, because training knows models
    from phalanx.training.trainer import train

    key = blake3(repr((repr(run), sorted(versions().items()), FORMAT)).encode()).hexdigest()[:24]
    place = Path(root) / "trained" / key
    try:
        place.mkdir(parents=True, exist_ok=True)
        with folder_lock(place):
            kept = RunFolder(place)
            if kept.summary is None:
                print(f"training the model that {run.model!r} begins with, once, in {place}", file=sys.stderr)
                threads = torch.get_num_threads()
                train(run, folder=kept)
                torch.set_num_threads(threads)
            point = kept.restore()
    except OSError as error:
        raise ValueError(f"{place} cannot be written ({error}); set PHALANX_DATA to a folder that can") from None
    assert point is not None
    return point.tree["model"]
