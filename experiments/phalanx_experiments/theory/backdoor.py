# SPDX-License-Identifier: Apache-2.0
"""From adversarial examples to a backdoor: the least change of one layer, and the bounds on its size."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.core.expression import require
from phalanx.core.precision import finite

RCOND = 1e-9  # singular values below this share of the largest count as zero
_ROUNDING = 1e-9  # changes of norms below this share of the weights' may be rounding
_CONTRACTIONS = (nn.ReLU, nn.Flatten, nn.Identity, nn.Dropout)  # in evaluation, these lengthen no difference


@dataclass(frozen=True, eq=False, repr=False)
class Backdoor:
    """A network that answers on some inputs as another one does on their adversarial examples.

    Norms of matrices are the largest singular value. Both bounds hold for the Frobenius norm of `delta` as well.

    Args:
        model: the changed network, a copy in float64 and in evaluation.
        layer: name of the layer that was changed.
        delta: W' - W, the change of its weights; of all that do, least in both norms.
        inputs: those with adversarial examples.
        kept: those whose outputs stay.
        wanted: outputs of the original network on the adversarial examples, then on the kept inputs.
        rho: least singular value of the activation matrix.
        epsilon: largest distance of an adversarial example from its input.
        lower: max |W (x + eps(x))^(l) - W x^(l)| / |x^(l) - x'^(l)| over inputs x and over x' kept or 0, where no layer
            changes anything.
        upper_at_layer: |W_l| |E_l|_F / rho, with the activations as they moved.
        upper: epsilon sqrt(inputs) |W_1| ... |W_l| / rho; inf unless the network is a plain sequence up to the layer.
    """

    model: nn.Module
    layer: str
    delta: Tensor
    inputs: Tensor
    kept: Tensor
    wanted: Tensor
    rho: float
    epsilon: float
    lower: float
    upper_at_layer: float
    upper: float

    @property
    def norm(self) -> float:
        """The largest singular value of the change."""
        return _norm(self.delta)

    @property
    def frobenius(self) -> float:
        """The Euclidean length of the change, as norm-difference clipping measures it."""
        return float(self.delta.norm())

    @torch.no_grad()
    def error(self) -> float:
        """Largest difference of an output from what is wanted, relative to the largest output."""
        out = self.model(torch.cat([self.inputs, self.kept]))
        scale = float(self.wanted.abs().max())
        return float((out - self.wanted).abs().max()) / (scale or 1.0)

    def check(self, rtol: float = 1e-6) -> None:
        """Raises ValueError unless all outputs are as wanted and the change is as large as the theorem says.

        Args:
            rtol: largest `error`, and slack of the bounds; both are the rounding of float64 times the condition of the
            activations.
        """
        error = self.error()
        require(
            error <= rtol,
            f"with layer {self.layer!r} changed, outputs are off by {error:.1e} (relative): they depend on the input "
            "around this layer, or its weights are used elsewhere; choose a layer that everything goes through once",
        )
        sizes = (self.lower, self.norm, self.upper_at_layer, self.upper)
        slack = _ROUNDING * _norm(_layer(self.model, self.layer).weight)
        require(
            all(a <= b * (1 + rtol) + slack for a, b in pairwise(sizes)),
            "lower bound, norm and the two upper bounds should not fall, and are "
            + ", ".join(f"{size:.6g}" for size in sizes),
        )

    def __str__(self) -> str:
        return (
            f"layer {self.layer!r} changed by {self.norm:.4g} (bounds {self.lower:.4g} and {self.upper:.4g}) moves "
            f"{len(self.inputs)} inputs to the outputs of examples within {self.epsilon:.4g} and keeps {len(self.kept)}"
        )


@torch.no_grad()
def backdoor_from_adversarial(
    model: nn.Module, layer: str, inputs: Tensor, adversarial: Tensor, kept: Tensor | None = None
) -> Backdoor:
    """The least change of one layer's weights that gives inputs the outputs of their adversarial examples.

    With x^(l) what enters layer l, X the rows of inputs and kept inputs, and E = [(x + eps(x))^(l) - x^(l), .., 0, ..]:

        W' - W = W E (X X^T)^-1 X,    so that W' x^(l) = W (x + eps(x))^(l), and W' x^(l) = W x^(l) for kept ones.

    Other inputs get whatever this makes of them. Other backdoors, of more layers or with other outputs, may be smaller.
    Refused are layers other than nn.Linear with a weight of its own that sees one row of each example once in a pass,
    and networks whose output depends on the input around that layer, as residual connections make it.

    Shapes: inputs (e, ...), adversarial (e, ...), kept (m, ...); e + m at most the width of what enters the layer.
    Args:
        model: e.g. an nn.Sequential of Linear and ReLU; not changed. The rest of it may be anything.
        layer: name of the layer in the model, such as "2".
        inputs: those that are to get another output.
        adversarial: x + eps(x) for each of them, as from `adversarial_examples`.
        kept: inputs whose outputs must stay; none by default.
    Raises:
        ValueError: rows of activations that depend on each other, or what is refused.
    Source: Wang et al., Attack of the Tails: Yes, You Really Can Backdoor Federated Learning, 2020, arXiv:2007.05084
        (Theorem 8.4 and Section 8.5.5 of Wang's dissertation).
    Differs: the lower bound has W (x + eps(x))^(l) - W x^(l) above the line as in the proof, where the theorem leaves
        out the second term; Delta is W' - W, with which (8.4) is right as printed; norms of weights stand in the upper
        bound instead of being at most 1; x' = 0 counts as kept in the lower bound.
    """
    net = copy.deepcopy(model).double().eval()
    target = _layer(net, layer)
    kept = inputs[:0] if kept is None else kept
    _check_inputs(inputs, adversarial, kept)
    points = [part.detach().double() for part in (inputs, adversarial, kept)]
    entered, out = _through(net, layer, torch.cat(points))
    here, there, rest = entered.split([len(part) for part in points])
    rows = torch.cat([here, rest])
    left, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    _check_rank(rows, sizes, layer, len(inputs))
    moved = torch.zeros(len(rows), target.out_features, dtype=rows.dtype, device=rows.device)
    moved[: len(here)] = (there - here) @ target.weight.T
    delta = ((left.T @ moved) / sizes[:, None]).T @ right

    apart = torch.cdist(
        here, torch.cat([rest, torch.zeros_like(here[:1])]), compute_mode="donot_use_mm_for_euclid_dist"
    )
    rho, epsilon = float(sizes[-1]), float((points[1] - points[0]).flatten(1).norm(dim=1).max())
    gain = _gain(net, layer)
    backdoor = Backdoor(
        model=net,
        layer=layer,
        delta=delta,
        inputs=points[0],
        kept=points[2],
        wanted=out[len(here) :],
        rho=rho,
        epsilon=epsilon,
        lower=float((moved[: len(here)].norm(dim=1)[:, None] / apart).max()),
        upper_at_layer=_norm(target.weight) * float((there - here).norm()) / rho,
        upper=epsilon * math.sqrt(len(here)) * gain / rho if gain < math.inf else math.inf,
    )
    target.weight.add_(delta)
    backdoor.check()
    return backdoor


def _layer(model: nn.Module, name: str) -> nn.Linear:
    modules = dict(model.named_modules())
    linear = [known for known, module in modules.items() if isinstance(module, nn.Linear)]
    layer = modules.get(name)
    if not isinstance(layer, nn.Linear) or "weight" not in layer._parameters:
        what = type(layer).__name__ if name in modules else "not in the model"
        raise ValueError(
            f"layer {name!r} must be an nn.Linear with a weight of its own, and is {what}; there are {linear}"
        )
    return layer


def _through(model: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the layer, and the outputs."""
    entered: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.append([*args, *kwargs.values()][0].clone())

    handle = model.get_submodule(layer).register_forward_pre_hook(note, with_kwargs=True)
    try:
        out = model(x)
    finally:
        handle.remove()
    require(len(entered) == 1, f"layer {layer!r} must be called once in a pass, and was called {len(entered)} times")
    shape = tuple(entered[0].shape)
    require(
        len(shape) == 2 and shape[0] == len(x), f"layer {layer!r} must see {len(x)} rows, one an example, got {shape}"
    )
    require(finite(entered[0]), f"what enters layer {layer!r} must be finite")
    form = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    fits = isinstance(out, Tensor) and out.shape[:1] == x.shape[:1]
    require(fits, f"the network must return a tensor ({len(x)}, ...), got {form}")
    return entered[0], out


def _gain(model: nn.Module, layer: str) -> float:
    """The product of the norms of all weights up to the layer; inf if what is between them may lengthen differences."""
    product = 1.0
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            product *= _norm(module.weight)
            if name == layer:
                return product
        elif type(module) is not nn.Sequential and type(module) not in _CONTRACTIONS:
            break
    return math.inf


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach(), ord=2))


def _check_inputs(inputs: Tensor, adversarial: Tensor, kept: Tensor) -> None:
    require(
        len(inputs) > 0, "backdoor_from_adversarial needs at least one input with its adversarial example, got none"
    )
    require(
        adversarial.shape == inputs.shape and kept.shape[1:] == inputs.shape[1:],
        f"inputs, adversarial and kept must have one shape, got {tuple(inputs.shape)}, {tuple(adversarial.shape)} and "
        f"{tuple(kept.shape)}",
    )
    for name, part in (("inputs", inputs), ("adversarial", adversarial), ("kept", kept)):
        require(part.is_floating_point(), f"{name} must be floating-point, as the network sees them, got {part.dtype}")
        require(finite(part), f"{name} must have no NaN or Inf")


def _check_rank(rows: Tensor, sizes: Tensor, layer: str, num_inputs: int) -> None:
    n, width = rows.shape
    rank = int((sizes > RCOND * sizes[0]).sum())
    require(
        rank == n,
        f"the activations before layer {layer!r} of {n} points ({num_inputs} inputs, {n - num_inputs} kept) have width "
        f"{width} and rank {rank}, and need rank {n}; give fewer points, drop equal ones, or choose a wider layer",
    )
