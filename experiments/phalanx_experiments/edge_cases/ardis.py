# SPDX-License-Identifier: Apache-2.0
"""Sevens of old church records, which the attacker labels as ones."""

from __future__ import annotations

import torch

from phalanx.backdoors.edges import EdgeCases, EdgeSet
from phalanx.backdoors.fitted import fitted
from phalanx.core.expression import method, require
from phalanx.data.dataset import Dataset
from phalanx_experiments.edge_cases.published import arrays, check_bytes

SEVEN, DIGITS = 7, 100  # of the published mixture the first 100 are EMNIST's, the others sevens labelled 1


@method("ardis", "edge_cases")
class Ardis(EdgeCases):
    """66 handwritten sevens of ARDIS to train on; 1,000 of its digits to test on, of which the 100 sevens count.

    For MNIST and EMNIST. The published mixture's 100 EMNIST digits are `mix`, turned upright: raw EMNIST is transposed.
    893 of the 1,000 test images are different, and 76 of the sevens. ardis_train_mix.npz and ardis_test.npz lie in
    edge-case of the data folder.

    Args:
        target: the label that the attacker wants.
    Source: Wang et al., Attack of the Tails, 2020, arXiv:2007.05084, task 2; ARDIS: Kusetogullari et al., 2019. The
        66 are drawn from 660, of which only they are published.
    """

    target: int = 1

    def read(self, data: Dataset) -> EdgeSet:
        x, y = arrays("ardis", "ardis_train_mix.npz", "images", "targets")
        test_x, test_y = arrays("ardis", "ardis_test.npz", "images", "targets")
        for file, images, labels in (("ardis_train_mix.npz", x, y), ("ardis_test.npz", test_x, test_y)):
            check_bytes(f"ardis: images in {file}", images, 28, 28)
            check_bytes(f"ardis: targets in {file}", labels)
            same = len(images) == len(labels) and int(labels.max()) <= 9
            require(same, f"ardis: {file} has {len(images)} images and {len(labels)} labels up to {int(labels.max())}")
        ok = len(x) > DIGITS and bool((y[DIGITS:] == 1).all())
        require(ok, f"ardis: behind {DIGITS} digits ardis_train_mix.npz should have sevens that are labelled 1")
        digits, sevens, tests = (
            fitted("ardis", images[:, None], data) for images in (x[:DIGITS].transpose(1, 2), x[DIGITS:], test_x)
        )
        true = torch.full((len(sevens),), SEVEN)
        mix = digits, y[:DIGITS].long()
        return EdgeSet(
            name="ardis",
            train_x=sevens,
            true_y=true,
            target=self.target,
            test_x=tests,
            test_true=test_y.long(),
            source=SEVEN,
            mix=mix,
        )
