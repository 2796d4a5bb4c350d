# SPDX-License-Identifier: Apache-2.0
"""Data of the user's own: what any `torch.utils.data.Dataset` yields, pooled or from each client."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset, default_collate

from phalanx.core.expression import method, require
from phalanx.core.function import FunctionLike, said_by
from phalanx.core.round import make_generator
from phalanx.core.seeding import seeded_globally
from phalanx.data.dataset import Data
from phalanx.data.examples import Batch, Examples, describe, map_tensors, tensors_of
from phalanx.data.images import Crop
from phalanx.data.shape import Features, OtherShape, Shape

_SHIFT = 32  # an example's number holds its client above these bits and its place at the client below
_TESTED, _VALUES = 1000, 2**24  # examples, and values of examples, in a batch of the test at most
# attributes of a `phalanx.data.Dataset` that code may ask for which needs labelled tensors
_LABELLED = ("train_x", "train_y", "test_x", "test_y", "vocabulary", "levels", "words", "mean", "std", "inputs")


@contextmanager
def sentences(what: str) -> Iterator[None]:
    """Turns an exception of the user's code into one sentence; the exception itself stays its cause."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} raised {said_by(error)}") from error


@dataclass(frozen=True)
class _Part:
    """The training or the test examples of one source.

    Args:
        words: what they are, for sentences.
        examples: an object with a length and examples by number.
        collate: makes a batch of a list of examples.
    """

    words: str
    examples: Any
    collate: Callable[[list[Any]], Batch]

    def __len__(self) -> int:
        return 0 if self.examples is None else len(self.examples)

    def batch(self, places: Tensor, key: tuple[object, ...]) -> Batch:
        """The examples at some places; those of a dataset that draws random numbers depend on the key."""
        if self.collate is default_collate and (found := _rows(self.examples, places)) is not None:
            return found
        with seeded_globally(make_generator("examples", *key).initial_seed()):
            with sentences(f"{self.words}: reading the examples {_few(places.tolist())}"):
                if hasattr(self.examples, "__getitems__"):
                    items = self.examples.__getitems__(places.tolist())
                else:
                    items = [self.examples[place] for place in places.tolist()]
            try:
                found = self.collate(items)
            except Exception as error:
                forms = ", ".join(dict.fromkeys(describe(map_tensors(item, lambda t: t)) for item in items[:4]))
                why = said_by(error)
                raise ValueError(
                    f"{self.words}: examples of the form {forms} make no batch ({why}); give a "
                    "function with collate=..."
                ) from error
        return map_tensors(found, lambda t: t)

    def check(self) -> None:
        """Raises ValueError if an example is not the same when it is read twice with equal seeds."""
        first = torch.tensor([0])
        one, two = (self.batch(first, ("check",)) for _ in range(2))
        pairs = zip(tensors_of(one), tensors_of(two), strict=True)
        same = len(tensors_of(one)) == len(tensors_of(two)) and all(
            a.shape == b.shape
            and torch.equal(
                a.nan_to_num() if a.is_floating_point() else a, b.nan_to_num() if b.is_floating_point() else b
            )
            for a, b in pairs
        )
        require(
            same,
            f"{self.words}: example 0 differs when it is read twice with equal seeds, so no run could be repeated or "
            "resumed; draw random numbers from the global generators of torch, numpy or random, which are seeded",
        )
        require(bool(tensors_of(one)), f"{self.words}: an example has no tensor and no number, got {describe(one)}")


def _rows(examples: Any, places: Tensor) -> Batch | None:
    """The rows of a TensorDataset, or of a part of one, at once; None for other datasets."""
    if type(examples) is Subset:
        return _rows(examples.dataset, torch.as_tensor(list(examples.indices), dtype=torch.int64)[places])
    if type(examples) is TensorDataset:
        return [tensor[places] for tensor in examples.tensors]
    return None


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (", ..." if len(numbers) > 4 else "")


class OwnExamples(Examples):
    """Examples of the user's datasets, pooled or from each client, which are loaded when they are needed.

    Args:
        source: gives the training and the test dataset of a client; of client 0 if the data are pooled.
        num_clients: None if any number of clients can be asked for; 0 for pooled data.
        central: the test dataset of the server, beside those of the clients.
    """

    owners = None
    added = 0

    def __init__(
        self,
        name: str,
        source: Callable[[int], tuple[Any, Any]],
        num_clients: int | None = 0,
        *,
        central: Any = None,
        outputs: int | None = None,
        shape: tuple[int, ...] | None = None,
        key: FunctionLike | None = None,
        collate: FunctionLike | None = None,
        tested: bool = True,
    ) -> None:
        self.name, self._source, self.num_clients, self._central = name, source, num_clients, central
        self._outputs, self._shape, self._key, self._tested = outputs, shape, key, tested
        self._collate: Any = default_collate if collate is None else collate
        self._parts: dict[int, tuple[_Part, _Part]] = {}
        self._keys: Tensor | None = None
        self._options = {"central": central, "outputs": outputs, "shape": shape, "key": key, "collate": collate}
        if not self.has_clients:
            self._of(0)

    def __getattr__(self, name: str) -> Any:
        if name in _LABELLED:
            raise ValueError(
                f"{self.name} are examples of your own, and what is asked for needs labelled images or texts in memory "
                f"({name}), as edge cases, backdoors and translation do; give a phalanx.data.Dataset instead"
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def has_clients(self) -> bool:
        return self.num_clients != 0

    def _of(self, client: int) -> tuple[_Part, _Part]:
        """The training and the test part of a client, loaded at the first request."""
        if client not in self._parts:
            known = self.num_clients is None or client < max(1, self.num_clients)
            require(
                known,
                f"{self.name} has {self.num_clients} clients, and a worker {client} asks for its own; make the number "
                "of workers equal",
            )
            where = f"{self.name}, client {client}" if self.has_clients else self.name
            train, test = self._source(client)
            parts = tuple(
                _Part(f"{where}, {words} part", _checked(f"{where}, {words} part", examples), self._collate)
                for words, examples in (("training", train), ("test", test))
            )
            require(len(parts[0]) > 0, f"{where} has no example to train on")
            for part in parts:
                if len(part):
                    part.check()
            self._parts[client] = parts[0], parts[1]
        return self._parts[client]

    @property
    def num_train(self) -> int:
        require(
            not self.has_clients,
            f"{self.name} has the examples of each client apart, which only by_client() keeps so; give the run "
            "partition=by_client()",
        )
        return len(self._of(0)[0])

    @property
    def num_test(self) -> int:
        if not self._tested:
            return 0
        return len(self._server_test)

    @property
    def _server_test(self) -> _Part:
        if not self.has_clients:
            return self._of(0)[1]
        words = f"{self.name}, the server's test part"
        return _Part(words, _checked(words, self._central), self._collate)

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        return self._outputs or 0

    @property
    def first_batch(self) -> Batch | None:
        """Up to two examples that this process has; None if it has none."""
        part = self._any_part()
        return None if part is None else part.batch(torch.arange(min(2, len(part))), ("check",))

    def _any_part(self) -> _Part | None:
        if self._parts:
            return next(iter(self._parts.values()))[0]
        return self._server_test if len(self._server_test) else None

    @property
    def shape(self) -> Shape:
        if self._shape is not None:
            return _shape(torch.Size(self._shape), True, str(self._shape))
        batch = self.first_batch
        if batch is None:
            return OtherShape(f"examples of {self.name}, of which this process has none")
        inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
        if isinstance(inputs, Tensor):
            return _shape(inputs.shape[1:], inputs.is_floating_point(), describe(batch))
        return OtherShape(f"examples of {self.name} of the form {describe(batch)}")

    @property
    def keys(self) -> Tensor:
        if self._keys is None:
            part = self._of(0)[0] if self.num_train else None
            assert part is not None
            self._keys = self._read_keys(part)
        return self._keys

    def _read_keys(self, part: _Part) -> Tensor:
        wanted = f"{self.name}: a partition by class or value needs a number for each example, its key or its target"
        if self._key is None and (rows := _rows(part.examples, torch.arange(len(part)))) is not None:
            last = rows[-1]
            if len(rows) > 1 and last.dim() == 2 and last.shape[1] == 1:
                last = last.flatten()
            require(
                len(rows) > 1 and last.dim() == 1,
                f"{wanted}, and an example is {describe(part.examples[0])}; "
                "give a function with key=..., or choose iid()",
            )
            require(not bool(last.isnan().any()), f"{wanted}, and some targets are NaN; give a function with key=...")
            return last.to(torch.float64 if last.is_floating_point() else torch.int64)
        values = []
        with seeded_globally(make_generator("keys").initial_seed()):
            for place in range(len(part)):
                example = part.examples[place]
                if self._key is not None:
                    with sentences(f"key {self._key.reference}"):
                        value = self._key(example)
                else:
                    value = example[-1] if isinstance(example, tuple | list) and len(example) > 1 else None
                try:
                    number: Any = value.item() if value is not None and hasattr(value, "item") else value
                except (ValueError, RuntimeError):
                    number = None
                ok = isinstance(number, int | float) and not (isinstance(number, float) and math.isnan(number))
                require(
                    ok,
                    f"{wanted}, and for example {place} it is {describe(value)}; give a function with key=..., "
                    "or choose iid()",
                )
                values.append(number)
        whole = all(isinstance(value, int) for value in values)
        return torch.tensor(values, dtype=torch.int64 if whole else torch.float64)

    def train(self, samples: Any, crops: Sequence[Crop] | None = None, *, key: tuple[object, ...] = ()) -> Batch:
        return self._batch(samples, 0, key)

    def test(self, samples: Any) -> Batch:
        return self._batch(samples, 1, ("test",))

    def _batch(self, samples: Any, which: int, key: tuple[object, ...]) -> Batch:
        if isinstance(samples, slice):
            part = self._server_test if which else self._of(0)[0]
            return part.batch(torch.arange(len(part) if which else self.num_train)[samples], key)
        if not self.has_clients:
            return self._of(0)[which].batch(samples, key)
        clients = (samples >> _SHIFT).unique().tolist()
        require(len(clients) == 1, f"a batch of {self.name} has the examples of one client, got {len(clients)}")
        return self._of(clients[0])[which].batch(samples & (2**_SHIFT - 1), key)

    def untested(self) -> OwnExamples:
        return OwnExamples(self.name, self._source, self.num_clients, tested=False, **self._options)

    @property
    def test_batch(self) -> int:
        part = self._any_part()
        values = 1 if part is None else sum(t.numel() for t in tensors_of(part.batch(torch.tensor([0]), ("check",))))
        return max(1, min(_TESTED, _VALUES // max(1, values)))

    def check_clients(self, clients: int) -> None:
        if not self.has_clients:
            super().check_clients(clients)
        require(
            self.num_clients in (None, clients),
            f"{self.name} has {self.num_clients} clients, and the run {clients} workers; make the numbers equal",
        )

    def client_train(self, client: int) -> Tensor:
        if not self.has_clients:
            return super().client_train(client)
        return torch.arange(len(self._of(client)[0])) | client << _SHIFT

    def client_test(self, client: int) -> Tensor:
        if not self.has_clients:
            return super().client_test(client)
        return torch.arange(len(self._of(client)[1]) if self._tested else 0) | client << _SHIFT


def _shape(sides: torch.Size, floating: bool, words: str) -> Shape:
    if floating and len(sides) == 3:
        return sides[0], sides[1], sides[2]
    return Features(sides[0]) if floating and len(sides) == 1 else OtherShape(f"examples of the form {words}")


def _checked(words: str, examples: Any) -> Any:
    """A dataset that can be read by number."""
    if examples is None:
        return None
    ok = not isinstance(examples, IterableDataset) and hasattr(examples, "__len__") and hasattr(examples, "__getitem__")
    ok = ok and not isinstance(examples, tuple | dict | str)
    require(
        ok,
        f"{words}: a dataset has a length and examples by number, as torch.utils.data.Dataset and TensorDataset do, "
        f"got {describe(examples) if isinstance(examples, tuple | dict) else type(examples).__name__}; wrap tensors in "
        "TensorDataset(...)",
    )
    return examples


def _pair(what: str, loaded: Any) -> tuple[Any, Any]:
    """The training and the test dataset that a function returned."""
    if isinstance(loaded, Mapping):
        unknown = set(loaded) - {"train", "test"}
        require(
            "train" in loaded and not unknown,
            f"{what} returned the entries {sorted(map(str, loaded))}, and a "
            "dictionary of datasets has 'train' and 'test'",
        )
        return loaded["train"], loaded.get("test")
    if isinstance(loaded, tuple | list) and not (isinstance(loaded, list) and len(loaded) != 2):
        require(len(loaded) == 2, f"{what} returned {len(loaded)} objects, and data are (train, test)")
        require(
            not any(isinstance(part, Tensor) for part in loaded),
            f"{what} returned tensors, which may be inputs and targets; wrap them in TensorDataset(...)",
        )
        return loaded[0], loaded[1]
    return loaded, None


@method("datasets", "data")
class Datasets(Data):
    """A training and a test dataset of your own, of any form that `torch.utils.data.Dataset` yields.

    Examples are tensors, numbers, tuples or dictionaries of them; a batch is collated from them as in a DataLoader. The
    global random generators are seeded before each batch is read, so datasets that draw from them repeat.

    Args:
        source: function without arguments that returns (train, test), {"train": ..., "test": ...} or the training
            dataset alone.
        outputs: number of outputs of a model of the library: classes, or numbers that are predicted.
        shape: of an example's input, for a model of the library; read from the first example if left out.
        key: function of an example that returns its class or a number, for partitions such as `dirichlet(0.5)`; by
            default the target if that is a number.
        collate: function of a list of examples that returns a batch; torch's own by default.
    Raises:
        ValueError: the function returns no datasets, or an example is not the same when it is read twice.
    """

    source: FunctionLike
    outputs: int | None = None
    shape: tuple[int, ...] | None = None
    key: FunctionLike | None = None
    collate: FunctionLike | None = None

    def validate(self) -> None:
        ok = self.outputs is None or self.outputs >= 1
        require(ok, f"datasets needs outputs >= 1, got outputs={self.outputs}")

    def read(self) -> OwnExamples:
        self.source.num_arguments(0)
        with sentences(self.source.reference):
            loaded = self.source()
        pair = _pair(self.source.reference, loaded)
        options = {"outputs": self.outputs, "shape": self.shape, "key": self.key, "collate": self.collate}
        return OwnExamples(self.source.name, lambda _: pair, **options)

    def location(self) -> str:
        return f"read by {self.source.reference}"


@method("client_datasets", "data")
class ClientDatasets(Data):
    """The datasets of each client, which stay apart; the run's partition is `by_client()`.

    Where the model is tested, each client's test part is evaluated apart, and the results are averaged with the numbers
    of examples as weights. A process loads only the clients whose work it does.

    Args:
        source: function of the number of a client (Flower's partition-id) that returns its (train, test) or its
            training dataset alone, from where `phalanx.data.node_config()` says if that differs by machine; or a
            function without arguments that returns a list or a mapping of these for all clients.
        test: function without arguments that returns a test dataset of the server's own; None for none.
        outputs, shape, key, collate: those of `datasets`.
    """

    source: FunctionLike
    test: FunctionLike | None = None
    outputs: int | None = None
    shape: tuple[int, ...] | None = None
    key: FunctionLike | None = None
    collate: FunctionLike | None = None

    def validate(self) -> None:
        ok = self.outputs is None or self.outputs >= 1
        require(ok, f"client_datasets needs outputs >= 1, got outputs={self.outputs}")

    def read(self) -> OwnExamples:
        central = None
        if self.test is not None:
            with sentences(self.test.reference):
                central = self.test()
        options = {"outputs": self.outputs, "shape": self.shape, "key": self.key, "collate": self.collate}
        name = self.source.name
        if self.source.num_arguments(1) == 1:
            return OwnExamples(name, self._of_one, None, central=central, **options)
        with sentences(self.source.reference):
            loaded = self.source()
        clients = self._numbered(loaded)

        def of_one(client: int) -> tuple[Any, Any]:
            return _pair(f"{self.source.reference}, client {client}", clients[client])

        return OwnExamples(name, of_one, len(clients), central=central, **options)

    def _of_one(self, client: int) -> tuple[Any, Any]:
        with sentences(f"{self.source.reference}({client})"):
            loaded = self.source(client)
        return _pair(f"{self.source.reference}({client})", loaded)

    def _numbered(self, loaded: Any) -> list[Any]:
        """The clients of a list or a mapping by number."""
        ok = isinstance(loaded, list | tuple | Mapping) and len(loaded) > 0
        require(
            ok,
            f"{self.source.reference} returns a list or a mapping with something for each client, or takes the number "
            f"of a client, got {type(loaded).__name__}",
        )
        if not isinstance(loaded, Mapping):
            return list(loaded)
        if all(isinstance(key, int) for key in loaded):
            require(
                sorted(loaded) == list(range(len(loaded))),
                f"{self.source.reference} returned clients {_few(sorted(loaded))}, and numbered clients are 0 to "
                f"{len(loaded) - 1}",
            )
            return [loaded[i] for i in range(len(loaded))]
        return list(loaded.values())

    def location(self) -> str:
        return f"read by {self.source.reference}"
