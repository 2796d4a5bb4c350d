# SPDX-License-Identifier: Apache-2.0
"""How rare an example is under a mixture of a trained model's outputs: figure 8.1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from phalanx.backdoors.edges import EdgeSet
from phalanx.core.expression import require
from phalanx.data.dataset import Dataset
from phalanx.data.images import Images

Covariance = Literal["own", "shared"]
RIDGE = 1e-3  # of the mean variance within classes, added to every variance


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture with one component for each class.

    Shapes: weights (K,), means (K, d), factors (K, d, d): lower Cholesky factors of the covariances; all float64.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    def log_density(self, outputs: Tensor) -> Tensor:
        """ln sum_k w_k N(x; m_k, S_k). Shapes: (n, d) -> (n,) float64."""
        d = self.means.shape[1]
        terms = []
        for weight, mean, factor in zip(self.weights, self.means, self.factors, strict=True):
            apart = torch.linalg.solve_triangular(factor, (outputs.double() - mean).T, upper=False)
            volume = factor.diagonal().log().sum() + d / 2 * math.log(2 * math.pi)
            terms.append(weight.log() - volume - apart.square().sum(dim=0) / 2)
        return torch.stack(terms).logsumexp(dim=0)


def fit_mixture(outputs: Tensor, labels: Tensor, covariance: Covariance = "shared") -> Mixture:
    """A Gaussian mixture with a component for each class: shares, means and covariances.

    The labels say which component an example belongs to, so it is the closed form and no iteration. To every variance
    1e-3 of the mean variance within classes is added.

    Shapes: (n, d), (n,) -> a component for each class that there is.
    Args:
        covariance: "own" of each class, or one "shared" by all.
    Raises:
        ValueError: there are no examples, or outputs that are not finite or do not differ within any class.
    Source: Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples, 2018, arXiv:1807.03888,
        whose covariance is shared; section 8.1 of the dissertation names a mixture and no covariance.
    """
    ok = len(outputs) == len(labels) > 0 and outputs.dim() == 2
    require(ok, f"a mixture needs outputs (n, d) and n labels, got {tuple(outputs.shape)} and {tuple(labels.shape)}")
    require(bool(outputs.isfinite().all()), "a mixture needs finite outputs; the model gives NaN or Inf")
    x, (classes, member) = outputs.double(), labels.unique(return_inverse=True)
    counts = member.bincount().double()
    sums = x.new_zeros(len(classes), x.shape[1]).index_add_(0, member, x)
    means = sums / counts[:, None]
    apart = x - means[member]
    spreads = torch.stack([apart[member == k].T @ apart[member == k] for k in range(len(classes))])
    pooled = spreads.sum(dim=0) / len(x)
    ridge = RIDGE * float(pooled.diagonal().mean())
    require(ridge > 0, "a mixture needs outputs that differ within a class, and all of each class are equal")
    covariances = spreads / counts[:, None, None] if covariance == "own" else pooled.expand_as(spreads)
    eye = torch.eye(x.shape[1], dtype=torch.float64)
    return Mixture(counts / len(x), means, torch.linalg.cholesky(covariances + ridge * eye))


@dataclass(frozen=True)
class EdgeCaseNess:
    """Log densities of the examples' outputs under the mixture of the training part's.

    Shapes: each (n,) float64.
    Args:
        train: of the training part that the mixture is fitted to.
        test: of the test part, which nobody has seen.
        edge: of the attacker's training examples.
        edge_test: of the test examples that are attacked.
        threshold: what is below counts as an edge case.
    """

    train: Tensor
    test: Tensor
    edge: Tensor
    edge_test: Tensor
    threshold: float

    @property
    def parts(self) -> dict[str, Tensor]:
        """The log densities of each part, by its name."""
        return {"train": self.train, "test": self.test, "edge": self.edge, "edge_test": self.edge_test}

    def filtered(self, edges: EdgeSet) -> EdgeSet:
        """The edge cases among the attacker's examples; the others resemble the data."""
        return edges.pick(self.edge < self.threshold)

    def below(self) -> dict[str, float]:
        """Share of each part below the threshold, in [0, 1]; NaN of an empty part."""
        return {name: float((part < self.threshold).double().mean()) for name, part in self.parts.items()}

    @property
    def separation(self) -> float:
        """Chance that a test example is denser than an edge-case one, a tie being half: 1 apart, 0.5 alike."""
        ordered = self.edge.sort().values
        low, high = (torch.searchsorted(ordered, self.test, right=right).double().mean() for right in (False, True))
        return float(low + high) / 2 / max(1, len(ordered))


def edge_case_ness(
    model: nn.Module,
    data: Dataset,
    edges: EdgeSet,
    covariance: Covariance = "shared",
    percentile: float = 1.0,
    batch: int = 512,
) -> EdgeCaseNess:
    """How unlikely edge-case examples are under a Gaussian mixture of the model's last-layer outputs.

    A defender learns from it whether a set would be seen as unusual, and which examples to put aside.

    Args:
        model: a trained classifier; it is run in evaluation mode, and left as it was.
        covariance: see `fit_mixture`.
        percentile: of the training part's densities that is the threshold, in [0, 100].
        batch: examples at a time, >= 1.
    Raises:
        ValueError: the data have a label for each token, or the outputs are not finite.
    Source: section 8.1 and figure 8.1 of the dissertation. Differs: as `fit_mixture`; the threshold is not in the text.
    """
    name = data.name
    require(data.train_y.dim() == 1, f"edge_case_ness needs one label an example, and {name} has one for each token")
    require(0 <= percentile <= 100, f"edge_case_ness needs a percentile in [0, 100], got percentile={percentile}")
    require(batch >= 1, f"edge_case_ness needs batch >= 1, got batch={batch}")
    clean, left = edges.places(data).clean, edges.honest(data)
    with _judging(model):
        outputs = _outputs(model, data, left.train_x[clean], batch)
        mixture = fit_mixture(outputs, left.train_y[clean], covariance)
        train = mixture.log_density(outputs)
        test, edge, edge_test = (
            mixture.log_density(_outputs(model, data, x, batch))
            for x in (data.test_x, edges.train_x, edges.test_x[edges.attacked])
        )
    return EdgeCaseNess(train, test, edge, edge_test, float(train.quantile(percentile / 100)))


@torch.no_grad()
def _outputs(model: nn.Module, data: Dataset, x: Tensor | Images, batch: int) -> Tensor:
    """What the last layer gives. Shapes: (n, ...) -> (n, num_classes) float64."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches = [model(data.inputs(x[i : i + batch].to(device))).double().cpu() for i in range(0, len(x), batch)]
    return torch.cat(batches) if batches else torch.empty(0, data.num_classes, dtype=torch.float64)


@contextmanager
def _judging(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
