# SPDX-License-Identifier: Apache-2.0
"""What must be alike on all ranks before they exchange anything: the model, its weights, the scheme and the seed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from phalanx.core._torch_private import group_timeout
from phalanx.core.expression import require
from phalanx.core.layout import Layout, plain_name
from phalanx.core.world import Collective
from phalanx.distributed.determinism import digest, groups_of, ranks_in_words
from phalanx.distributed.recompute import wrapped_layers

T = TypeVar("T")
Weights = Literal["broadcast", "refuse"]  # what becomes of initial weights that differ between ranks

_TERMS = ("what is made", "scheme", "seed", "settings", "parameters")
_DIGEST_BYTES = 32
_SHOWN = 3  # names of parameters in a sentence
_log = logging.getLogger(__name__)


def plain_module(model: nn.Module, user: str) -> nn.Module:
    """The module inside torch.compile, whose gradients a scheme exchanges.

    Args:
        user: the name of what needs it, for the error.
    Raises:
        ValueError: the model is no module, is wrapped in DistributedDataParallel, or is split over the ranks.
    """
    require(isinstance(model, nn.Module), f"{user} takes a model, got a {type(model).__name__}")
    require(
        not any(isinstance(part, DistributedDataParallel) for part in model.modules()),
        f"DDP averages the gradients before {user} sees them, so that all ranks have the same row; leave DDP out, or "
        "make the scheme its hook with phalanx.ddp.register(ddp_model, scheme)",
    )
    refuse_split(model, user)
    return wrapped_layers(model)[-1]


def refuse_split(module: nn.Module, user: str) -> None:
    """Raises ValueError for a model that FSDP splits over the ranks, or one whose tensors have no shape yet."""
    split = any(type(part).__name__ == "FullyShardedDataParallel" for part in module.modules())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        require(
            # a DTensor, as fully_shard makes
            not split and not hasattr(tensor, "device_mesh"),
            f"{plain_name(name)} is split over the ranks, as FSDP and fully_shard do, and {user} needs whole "
            "gradients; leave the model whole, or wrap it in DistributedDataParallel and call phalanx.ddp.register",
        )
        require(
            not nn.parameter.is_lazy(tensor),
            f"{plain_name(name)} has no shape yet; pass a batch through the model before {user}",
        )


def same_parameters(module: nn.Module, layout: Layout, user: str) -> None:
    """Raises ValueError unless the trained parameters of a module are those of the layout."""
    now = {plain_name(n): p.shape for n, p in module.named_parameters() if p.requires_grad}
    then = dict(zip(layout.head.names, layout.head.shapes, strict=True))
    if now == then:
        return
    changes = {
        "no longer trained": [n for n in then if n not in now],
        "trained since": [n for n in now if n not in then],
        "of another shape": [n for n in now if n in then and now[n] != then[n]],
    }
    words = "; ".join(f"{what}: {_some(names)}" for what, names in changes.items() if names)
    raise ValueError(f"the trained parameters have changed since {user} was made ({words}); make a new one")


def agree(world: Collective, make: Callable[[], tuple[T, Mapping[str, object]]], user: str) -> T:
    """Makes a part of every rank's loop, once all ranks have made theirs alike. No rank waits for one that refuses.

    The ranks gather one digest of 32 bytes for each term.

    Args:
        make: returns the part, and its terms by the names of `_TERMS`.
    Raises:
        ValueError: on every rank, where one refuses its own settings or their terms differ.
    """
    terms: Mapping[str, object] = {}
    try:
        made, terms = make()
    except Exception as error:
        made = error
    rows = [_digest(repr(isinstance(made, Exception))), *(_digest(repr(terms.get(term))) for term in _TERMS)]
    table = torch.tensor([list(row) for row in rows], dtype=torch.uint8)
    tables = [payload["terms"] for payload in world.all_gather_payloads({"terms": table})]
    if isinstance(made, Exception):
        raise made
    refused = [rank for rank, each in enumerate(tables) if not each[0].equal(table[0])]
    require(
        not refused,
        f"{user}: {ranks_in_words(refused, 'rank')} refused its arguments, and the error there says why; give every "
        "rank the same",
    )
    for place, term in enumerate(_TERMS, start=1):
        most, *others = groups_of([bytes(each[place].tolist()) for each in tables])
        differing = sorted(rank for group in others for rank in group)
        require(
            not differing,
            f"{user}: {ranks_in_words(differing, 'rank')} got another value for {term} than "
            f"{ranks_in_words(most, 'rank')}; give every rank the same (here {_short(terms.get(term))})",
        )
    return made


@torch.no_grad()
def agree_on_weights(world: Collective, module: nn.Module, weights: Weights) -> None:
    """Gives every rank the weights and buffers of rank 0, or refuses ranks that have others.

    Raises:
        ValueError: on every rank, where parameters or buffers, frozen ones too, have other names, shapes or dtypes, or
            where weights="refuse" and their values differ.
    """
    tensors = {plain_name(n): t for n, t in (*module.named_parameters(), *module.named_buffers())}
    forms = [(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]
    mine = bytearray(digest(tensors.items()) + _digest(repr(forms)))
    told = world.all_gather_payloads({"weights": torch.frombuffer(mine, dtype=torch.uint8)})
    whole = [bytes(payload["weights"].tolist()) for payload in told]
    most, *unlike = groups_of([each[-_DIGEST_BYTES:] for each in whole])
    differing = sorted(rank for group in unlike for rank in group)
    require(
        not differing,
        f"{ranks_in_words(differing, 'rank')} has parameters or buffers of other names, shapes or dtypes than "
        f"{ranks_in_words(most, 'rank')}, trained or frozen; build the same model on every rank",
    )
    digests = [each[:-_DIGEST_BYTES] for each in whole]
    others = [rank for rank, each in enumerate(digests) if each != digests[0]]
    if not others:
        return
    words = f"{ranks_in_words(others, 'rank')} began with other weights than rank 0"
    require(weights == "broadcast", f"{words}; load the same on every rank, or let weights='broadcast' copy rank 0's")
    if world.rank == 0:
        _log.warning("%s, and those of rank 0 are copied to all; say weights='refuse' to stop there", words)
    for name, tensor in world.broadcast(_real(tensors) if world.rank == 0 else {}).items():
        target = torch.view_as_real(tensors[name]) if tensors[name].is_complex() else tensors[name]
        target.copy_(tensor.reshape(target.shape))


def twin(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """A new group of the same ranks, backends and timeout."""
    assert group is not None
    ranks = dist.get_process_group_ranks(group)
    made = dist.new_group(
        ranks,
        timeout=group_timeout(group),
        backend=str(dist.get_backend_config(group)),
        # ranks that a group leaves out do not know of it
        use_local_synchronization=len(ranks) < dist.get_world_size(),
    )
    assert isinstance(made, dist.ProcessGroup)
    return made


def _real(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as the wire carries them: complex ones as pairs of numbers."""
    return {name: torch.view_as_real(t) if t.is_complex() else t.detach() for name, t in tensors.items()}


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=32).digest()


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
