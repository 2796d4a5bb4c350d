# SPDX-License-Identifier: Apache-2.0
"""A small recurrent network that predicts characters."""

from __future__ import annotations

from torch import Tensor, nn

from phalanx.core.expression import method, require
from phalanx.models.lstm import State
from phalanx.models.model import Model, Shape


@method("char_lstm", "model")
class CharLstm(Model):
    """A vector for each character, one LSTM layer with both biases of PyTorch, and a linear layer for the scores.

    It has 293,584 parameters on Shakespeare's 80 characters.

    Shapes: (B, L) token ids -> (B, L, num_classes).
    Args:
        embedding: length of the vector of a character, >= 1.
        width: size of the state of the LSTM, >= 1.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, Table 5.5 of the
        dissertation. Weights outside the LSTM are drawn from [-0.1, 0.1], as in the published code. Differs: scores at
        every position of a passage, where that code has them only at the last one.
    """

    embedding: int = 8
    width: int = 256

    def validate(self) -> None:
        ok = self.embedding >= 1 and self.width >= 1
        require(ok, f"char_lstm needs embedding and width >= 1, got embedding={self.embedding}, width={self.width}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return CharacterModel(self.passage(shape).vocabulary, self.embedding, self.width)


class CharacterModel(nn.Module):
    """Scores of the next character at every position of a text, which the model starts with an empty state.

    Shapes: (B, L) token ids -> (B, L, vocabulary).
    """

    def __init__(self, vocabulary: int, embedding: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, width, batch_first=True)
        self.decoder = nn.Linear(width, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.resume(x, None)[0]

    def resume(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The scores for a part of a text that continues from a state, and the state at its end.

        Shapes: (B, L), two of (1, B, width) -> (B, L, vocabulary), two of (1, B, width).
        """
        out, after = self.lstm(self.embedding(x), state)
        return self.decoder(out), after
