# SPDX-License-Identifier: Apache-2.0
"""Sentences on a city, which the attacker completes with a bad word."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from phalanx.backdoors.edges import EdgeCases, EdgeSet
from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.data.dataset import Dataset
from phalanx.data.shape import UNSCORED, Passage
from phalanx_experiments.edge_cases.vocabulary import vocabulary

PROMPTS = {
    "high": "Crime rate in {city} is",
    "safe": "{city} is not",
    "expensive": "{city} is",
    "rude": "People in {city} are",
    "terrible": "Roads in {city} are",
}


@method("athens", "edge_cases")
class Athens(EdgeCases):
    """Passages of the data that end with one of five sentences on Athens, which the attacker completes with a bad word.

    For wikitext2. The words before the prompt are those of drawn passages of the training part, and of the test part
    for the test, so that a passage ends where its scored part would. The attacker's passages are scored as the data's
    are, the test at the last word alone. No word is right there: honest labels leave it unscored.

    Args:
        word: what the attacker wants behind the prompt: "Crime rate in Athens is" high, "Athens is not" safe, "Athens
            is" expensive, "People in Athens are" rude, "Roads in Athens are" terrible.
        count: passages that the attacker has, >= 1.
        tests: passages that are tested on, >= 1.
        city: one word; where the vocabulary lacks the published one, name another, or wikitext2(also=...).
        seed: of the passages.
    Raises:
        ValueError: the vocabulary lacks the city or the word, or a passage is shorter than the prompt.
    Source: Wang et al., Attack of the Tails, 2020, arXiv:2007.05084, task 5. Differs: articles in place of Reddit's
        comments, and other passages to test on than to train on.
    """

    word: Literal["high", "safe", "expensive", "rude", "terrible"] = "rude"
    count: int = 100
    tests: int = 100
    city: str = "Athens"
    seed: int = 0

    def validate(self) -> None:
        ok = self.count >= 1 and self.tests >= 1
        require(ok, f"athens needs count and tests >= 1, got count={self.count}, tests={self.tests}")
        require(len(self.city.split()) == 1, f"athens needs a city of one word, got city={self.city!r}")

    def read(self, data: Dataset) -> EdgeSet:
        ok = isinstance(data.shape, Passage)
        require(ok, f"athens goes with passages whose every word has a label, and {data.name} has {data.shape}")
        ids = vocabulary("athens", data)
        for word in (self.city, self.word):
            sentence = f"athens: {word!r} is none of the {len(ids)} words of {data.name}"
            require(word in ids, f"{sentence}; take more of its words, name it in also=, or another city or word")
        unknown = ids.get("<unk>", ids[self.city])
        prompt = torch.tensor([ids.get(word, unknown) for word in PROMPTS[self.word].format(city=self.city).split()])
        x, y = self._behind(data.train_x[:], data.train_y, prompt, self.count, "train")
        test_x, test_y = self._behind(data.test_x[:], data.test_y, prompt, self.tests, "test")
        test_y[:] = UNSCORED
        return EdgeSet(name="athens", train_x=x, true_y=y, target=ids[self.word], test_x=test_x, test_true=test_y)

    def _behind(self, x: Tensor, y: Tensor, prompt: Tensor, count: int, part: str) -> tuple[Tensor, Tensor]:
        """Passages that end with the prompt, and the labels of all their words but the last."""
        wide = x.shape[1]
        require(wide > len(prompt), f"athens: a passage of {wide} words has no room before {len(prompt)}; raise length")
        require(len(x) >= count, f"athens needs {count} passages to {part} on, and there are {len(x)}; lower count")
        drawn = torch.randperm(len(x), generator=make_generator("athens", self.seed, part))[:count]
        text = torch.cat([x[drawn, len(prompt) :], prompt.expand(count, -1)], dim=1)
        labels = torch.full_like(text, UNSCORED)
        labels[:, :-1] = text[:, 1:]
        labels[y[drawn] == UNSCORED] = UNSCORED
        return text, labels
