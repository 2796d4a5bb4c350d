# SPDX-License-Identifier: Apache-2.0
"""The numbers of a run that has ended."""

from __future__ import annotations

import hashlib
import math
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from phalanx.data.dataset import Data, Dataset
from phalanx.data.multi30k import Multi30k
from phalanx.data.shape import example
from phalanx.lowrank.macs import macs
from phalanx.models.bleu import bleu_of

if TYPE_CHECKING:
    from phalanx.training.trainer import Trainer

ROUND = ("work_s", "scheme_s", "finish_s")  # the seconds of a round; those of `PARTS` are within scheme_s


def summary(trainer: Trainer) -> dict[str, Any]:
    """The numbers of a run that has ended, as plain values."""
    accuracy, loss = trainer.evaluate()
    ledger, times = trainer.ledger, trainer.times
    # the first rounds compile kernels and warm caches
    later = {name: values[min(3, len(values) // 2) :] for name, values in times.items()}
    return {
        "accuracy": accuracy,
        "test_loss": loss,
        **({"perplexity": _perplexity(loss)} if trainer.data.test_y.dim() > 1 else {}),
        **(_translation(trainer.config.data, trainer.model) if len(trainer.data.test_y) else {}),
        **({"examined": trainer.examine()} if trainer.config.evaluators else {}),
        "rounds": trainer.step,
        "lost_rounds": ledger.lost_rounds,
        "lost_groups": ledger.lost_groups,
        "bytes_up": ledger.bytes_up,
        "bytes_down": ledger.bytes_down,
        "local_epochs": ledger.local_epochs,
        "bytes_per_worker_round": ledger.bytes_up / max(1, trainer.step * trainer.config.workers),
        "round_s": sum(median(later[name]) for name in ROUND if later[name]),
        **{name: median(values) if values else None for name, values in later.items()},
        "parameters": trainer.learner.parameters,
        **({"widths": trainer.learner.widths} if trainer.learner.widths else {}),
        "macs": macs(trainer.model, _example(trainer.data).to(trainer.device)).total,
        "accused": ledger.table(),
        "accusation_precision": ledger.precision,
        "accusation_recall": ledger.recall,
        "weights_sha256": fingerprint(trainer.model),
        "processes": len(trainer.world.processes) + 1
        if trainer.world.serves
        else trainer.world.size // len(trainer.world.ids),
        "seed": trainer.config.seed,
    }


def _translation(data: Data, model: nn.Module) -> dict[str, float]:
    """BLEU of a model that translates, where the data set asks for it by `beam`."""
    if not isinstance(data, Multi30k) or data.beam == 0:
        return {}
    return {"bleu": bleu_of(model, data, data.beam)}  # type: ignore[arg-type]


def _example(data: Dataset) -> Tensor:
    """One example, a text in the length of the first one that is tested."""
    return data.test(slice(0, 1))[0] if len(data.test_y) else example(data.shape)[:1]


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers: equal for bit-identical models."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _perplexity(loss: float | None) -> float | None:
    return None if loss is None else number_of(torch.tensor(loss, dtype=torch.float64).exp())


def number_of(x: Tensor | float) -> float | None:
    """A float for JSON, which knows neither NaN nor infinity."""
    value = float(x)
    return value if math.isfinite(value) else None
