# SPDX-License-Identifier: Apache-2.0
"""Matching under a beta-Bernoulli process, in which the prior and the data decide the number of global neurons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.matching.buffet import BuffetPrior
from phalanx.matching.matching import Assigned, Matcher
from phalanx.matching.normal import Normal
from phalanx.matching.search import search


@method("bbp", "matcher")
class Bbp(Matcher):
    """Merges neurons of several clients that are likely copies of one neuron, by a search that improves the matching.

    Suppose that n of the J clients have a copy of a global neuron, and that the weights of these copies sum to T. If a
    neuron w of another client joins them, this adds to the objective

        |w/sigma + G|^2 / (1/sigma + S) - |G|^2 / S + popularity * log(n / (J - n)),
        G = mu0/sigma0 + T/sigma,  S = 1/sigma0 + n/sigma,

    If w becomes the k-th new global neuron of its client, this adds the first two terms at n = 0, and 2 log(gamma/J) -
    2 log k. All neurons of a client are placed at once by linear assignment: first one client after the other, the
    largest first, then all clients again in random order, until a sweep over them changes nothing. The objective is
    twice the log joint probability of weights and partition, without terms that are equal for all partitions. The terms
    log k stand for the -2 log(s!) of the s neurons that only one client has. To match a client again also changes the s
    of other clients, which can lower the objective, so the best partition is returned.

    With sigma = sigma0 = 1 and small weights the prior alone decides how many neurons there are: see docs/matching.md.

    Shapes: J of (L_j, D) -> (L, D).
    Args:
        gamma: expected number of neurons, > 0; a higher one makes more of them.
        sigma: variance of an entry around the neuron it is a copy of, > 0; a lower one makes more neurons.
        sigma0: variance of a neuron's entries around their prior mean, > 0.
        bias_mean: prior mean of biases; the prior mean of all other entries is 0.
        popularity: factor of the third term, > 0; 1 as in the published code, or 2 as in the model, which makes more
            neurons where few clients have one.
        cap: largest n in the third term, >= 1; None, as in the model, is no limit.
        sweeps: passes over all clients after the first one, at most; >= 0.
        average: "posterior" is G / S, which with sigma = sigma0 and mu0 = 0 is T/(n + 1); "plain" is T/n.
        log_determinant: whether the Gaussians are normalised; use it if sigma and sigma0 are those of the weights.
        limit: number of global neurons, >= 1; above it a client may make one new neuron only. None sets no limit.
    Raises:
        ValueError: a setting is out of its range, or as `match`.
    Source: Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, 2019, arXiv:1905.12022,
        section 3; Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, section 2. Differs:
        ends after a sweep that changes nothing, returns the best partition, numbers neurons as they appear; `limit`
        leaves no neuron without a place.
    """

    gamma: float = 7.0
    sigma: float = 1.0
    sigma0: float = 1.0
    bias_mean: float = 0.1
    popularity: float = 1
    cap: int | None = 10
    sweeps: int = 5
    average: Literal["posterior", "plain"] = "posterior"
    log_determinant: bool = False
    limit: int | None = 700

    def validate(self) -> None:
        for name in ("gamma", "sigma", "sigma0", "popularity"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"bbp needs {name} > 0, got {name}={value}")
        require(math.isfinite(self.bias_mean), f"bbp needs a finite bias_mean, got {self.bias_mean}")
        require(self.cap is None or self.cap >= 1, f"bbp needs cap >= 1 or None, got cap={self.cap}")
        require(self.limit is None or self.limit >= 1, f"bbp needs limit >= 1 or None, got limit={self.limit}")
        require(self.sweeps >= 0, f"bbp needs sweeps >= 0, got sweeps={self.sweeps}")

    def assign(self, layers: Sequence[Tensor], bias_columns: Sequence[int], seed: int) -> Assigned:
        prior = BuffetPrior(self.gamma, self.popularity, self.cap, len(layers))
        return search(layers, self.model(layers[0], bias_columns), prior, self.max_new, self.sweeps, seed)

    def model(self, like: Tensor, bias_columns: Sequence[int]) -> Normal:
        """The likelihood for rows of the width, type and device of `like`."""
        mean = self._mean(like, bias_columns)
        return Normal(mean, mean.new_tensor([self.sigma]), mean.new_tensor([self.sigma0]), self.log_determinant)

    def max_new(self, num_rows: int, known: int) -> int:
        """The new neurons that a client may open: min(L_j, max(limit - L, 1))."""
        return num_rows if self.limit is None else min(num_rows, max(self.limit - known, 1))

    def posterior(self, mean: Tensor, counts: Tensor, bias_columns: Sequence[int] = ()) -> Tensor:
        if self.average == "plain":
            return mean
        prior = self._mean(mean, bias_columns)
        n = counts[:, None].to(mean.device).double()
        kept = n / (n + self.sigma / self.sigma0)
        return (prior + kept * (mean.double() - prior)).to(mean.dtype)

    def _mean(self, like: Tensor, bias_columns: Sequence[int]) -> Tensor:
        mean = torch.zeros(like.shape[1], dtype=torch.float64, device=like.device)
        mean[list(bias_columns)] = self.bias_mean
        return mean
