# SPDX-License-Identifier: Apache-2.0
"""Matching under a beta-Bernoulli process: as many global neurons as the prior and the data ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.matching.buffet import Buffet
from phalanx.matching.matching import Assigned, Matcher
from phalanx.matching.normal import Normal
from phalanx.matching.search import search


@method("bbp", "matcher")
class Bbp(Matcher):
    """Neurons that are likely copies of one are one, others stay apart: a probable matching, improved client by client.

    A client's neuron w joins a global one that n of the J clients have, with weights that sum to T, for

        |w/sigma + G|^2 / (1/sigma + S) - |G|^2 / S + popularity * log(n / (J - n)),
        G = mu0/sigma0 + T/sigma,  S = 1/sigma0 + n/sigma,

    or is the client's k-th new one for the first two terms at n = 0 and 2 log(gamma/J) - 2 log k. All neurons of a
    client are placed at once, by linear assignment: clients with most neurons first, then all in random order until a
    sweep ends where it began. The objective is twice the log joint probability of weights and partition, up to what is
    equal for all partitions. But for the log k no rematch would lower it. They stand for the -2 log(s!) of the s
    neurons that a client has alone, and a rematch changes the s of other clients, too; so the best partition is kept.

    With sigma = sigma0 = 1 and small weights the prior alone decides how many neurons there are: see docs/matching.md.

    Shapes: J of (L_j, D) -> (L, D).
    Args:
        gamma: neurons to expect; higher opens more.
        sigma: variance of an entry around the neuron it is a copy of; lower opens more.
        sigma0: variance of a neuron's entries around their prior mean.
        bias_mean: prior mean of biases; of all other entries it is 0.
        popularity: 1 as the published code, 2 as the model has it, which opens more where few clients have a neuron.
        cap: clients from which on a neuron is not more popular; None is as the model has it.
        sweeps: at most.
        average: "posterior" is G / S, which with sigma = sigma0 and mu0 = 0 is T/(n + 1); "plain" is T/n.
        log_determinant: normalises the Gaussians; wanted where sigma and sigma0 are those of the weights.
        limit: global neurons beyond which a client may open one only; None lets each neuron open one.
    Raises:
        ValueError: gamma, sigma, sigma0 or popularity not above 0; what `match` raises.
    Source: Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, 2019, arXiv:1905.12022,
        section 3; Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, section 2. Differs:
        ends when a sweep ends where it began, keeps the best partition, numbers neurons as they appear; `limit` leaves
        no neuron without a place.
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
        prior = Buffet(self.gamma, self.popularity, self.cap, len(layers))
        return search(layers, self.model(layers[0], bias_columns), prior, self.room, self.sweeps, seed)

    def model(self, like: Tensor, bias_columns: Sequence[int]) -> Normal:
        """The Gaussians of rows like these."""
        mean = self._mean(like, bias_columns)
        return Normal(mean, mean.new_tensor([self.sigma]), mean.new_tensor([self.sigma0]), self.log_determinant)

    def room(self, num_rows: int, known: int) -> int:
        """K_max = min(L_j, max(limit - L, 1))."""
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
