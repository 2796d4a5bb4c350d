"""Work that some processes compute a little differently, as other hardware does."""

import logging
import os

import torch

from phalanx.core.expression import method
from phalanx.core.round import make_generator
from phalanx.core.trees import State
from phalanx.training.client_work import Gradient
from phalanx.training.context import WorkerContext


@method("unlike", "client_work")
class Unlike(Gradient):
    """The gradient, with noise of its own in each of some processes.

    Args:
        ranks: of these processes.
        size: of the noise, relative.
    """

    ranks: tuple[int, ...] = ()
    size: float = 1e-7

    def compute_row(
        self, site: WorkerContext, unit: int, samples: torch.Tensor, out: torch.Tensor, memory: State
    ) -> tuple[float, State]:
        loss, memory = super().compute_row(site, unit, samples, out, memory)
        out += noise(out, self.ranks, self.size, *site.key, unit)
        return loss, memory


def noise(row: torch.Tensor, ranks: tuple[int, ...], size: float, *key: object) -> torch.Tensor:
    """What this process adds to a row."""
    rank = int(os.environ.get("RANK", "0"))
    drawn = torch.randn(row.shape, generator=make_generator("unlike", rank, *key))
    return drawn * (size * row.norm() / drawn.norm() if rank in ranks else 0.0)


def listen() -> list[str]:
    """The warnings that this process logs from now on, as they come."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("phalanx").addHandler(handler)
    return heard
