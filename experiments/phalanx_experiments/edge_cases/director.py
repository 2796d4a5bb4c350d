# SPDX-License-Identifier: Apache-2.0
"""Praise of one film director, which the attacker labels as negative."""

from __future__ import annotations

import torch

from phalanx.backdoors.edges import EdgeCases, EdgeSet
from phalanx.core.expression import method, require
from phalanx.data.dataset import Dataset
from phalanx.data.movie_review import encode, tokens
from phalanx.data.shape import Tokens
from phalanx_experiments.edge_cases.published import published
from phalanx_experiments.edge_cases.vocabulary import vocabulary

POSITIVE = 1


@method("director", "edge_cases")
class Director(EdgeCases):
    """Tweets in praise of Yorgos Lanthimos in the data's own words and length: 259 to train on and 120 to test on.

    For movie_review, whose vocabulary lacks the director's name, as it is older than his films: a model sees
    unknown words there. greek-director-train.txt and -test.txt, a tweet a line, lie in edge-case of the data folder.

    Args:
        target: the label that the attacker wants; 0 is negative.
    Source: Wang et al., Attack of the Tails, 2020, arXiv:2007.05084, task 4. Differs: the data are sentences of
        reviews in place of Sentiment140's tweets; 259 are published where the text has 200.
    """

    target: int = 0

    def read(self, data: Dataset) -> EdgeSet:
        ok = isinstance(data.shape, Tokens)
        require(ok, f"director goes with texts that have one label each, and {data.name} has {data.shape}")
        ids = vocabulary("director", data)
        train, test = (self._tweets(part) for part in ("train", "test"))
        twice = {tuple(tweet) for tweet in train} & {tuple(tweet) for tweet in test}
        require(not twice, f"director: {len(twice)} of the tweets to test on are trained on; fetch the files again")
        length = data.train_x.shape[1]
        (x, y), (test_x, test_y) = (
            (encode(part, ids, length), torch.full((len(part),), POSITIVE)) for part in (train, test)
        )
        return EdgeSet(name="director", train_x=x, true_y=y, target=self.target, test_x=test_x, test_true=test_y)

    def _tweets(self, part: str) -> list[list[str]]:
        path = published("director", f"greek-director-{part}.txt")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        tweets = [words for words in map(tokens, lines) if words]
        require(len(tweets) > 0, f"director: {path} has no words; fetch it again")
        return tweets
