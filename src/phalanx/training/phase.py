# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: phases that say what a row is, how rows become one, and what is done with it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

from phalanx.attacks.adversary import NoAdversary, Threat
from phalanx.attacks.faults import Fault
from phalanx.core.aggregator import Aggregator
from phalanx.core.codec import Gather
from phalanx.core.expression import Expression, method, require
from phalanx.core.registry import suggest
from phalanx.core.stage import Stage, check_scheme
from phalanx.core.surgery import Surgery
from phalanx.core.wire_stage import stages_of
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.data.partition import Iid, Partition
from phalanx.matching.match_stage import Matched
from phalanx.models.model import Model
from phalanx.training.client_sampler import AllClients, ClientSampler
from phalanx.training.client_work import ClientWork, MultiRoundWork
from phalanx.training.early_stopping import EarlyStopping
from phalanx.training.evaluator import Evaluator
from phalanx.training.observers.observer import Observer
from phalanx.training.optim import ServerOptimizer, Sgd
from phalanx.training.secure_sum import check_secure
from phalanx.training.task import Task
from phalanx.training.tasks import Classification


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a round stands in its run.

    Args:
        round_index: number of the round in the run, from 0.
        phase_index: number of its phase in the run, from 0.
        round_in_phase: number of the round in its phase, from 0.
        pass_start: number in the run of the first round of the pass that it belongs to: the round itself, unless the
            phase's work spans several rounds.
        completes_pass: whether the model is whole behind this round and can be tested.
    """

    round_index: int
    phase_index: int
    round_in_phase: int
    pass_start: int
    completes_pass: bool = True

    @property
    def starts_pass(self) -> bool:
        """Whether it is the first round of a pass."""
        return self.pass_start == self.round_index


@method("phase", "phase")
class Phase(Expression):
    """`rounds` rounds of the same kind.

    Args:
        work: how a worker computes its row.
        scheme: chain of stages from the workers' rows to one row, across one wire.
        optimizer: how that row updates the model.
        rounds: >= 0.
        surgery: how the network changes its shape during the phase, such as `pufferfish()`; None keeps the shape.
        clients: chooses the workers of a round.
        adversary: the work of Byzantine workers in place of `work`; None for the same work.
        secure: the server sees only the sum of the round's rows, as with secure aggregation. Nothing is encrypted: only
            the view of the server is kept, for tests of attacks and defences.
    """

    work: ClientWork
    scheme: Stage
    optimizer: ServerOptimizer = Sgd()
    rounds: int = 200
    surgery: Surgery | None = None
    clients: ClientSampler = AllClients()
    adversary: ClientWork | None = None
    secure: bool = False

    def validate(self) -> None:
        require(self.rounds >= 0, f"phase needs rounds >= 0, got rounds={self.rounds}")
        require(
            not (self.optimizer.installs and self.surgery is not None),
            f"a phase whose rows are installed has no surgery, got {self.surgery!r}; make it a phase of its own",
        )

    def check(self, n: int) -> None:
        """Raises ValueError unless n workers can carry it out."""
        count = self.clients.count(n)
        if self.secure:
            check_secure(self.scheme, count)
        check_scheme(self.scheme, count)
        everyone = isinstance(self.clients, AllClients)
        require(
            self.adversary is None or not (self.work.matched or self.adversary.matched),
            f"work of an adversary's own goes beside clients that send changes, got {self.adversary!r} beside "
            f"{self.work!r}",
        )
        alone = self.scheme.assign(n) is None
        require(
            alone or self.adversary is None,
            f"{self.scheme!r} has several workers compute the same, and {self.adversary!r} is work of its own; put an "
            "attack on rows before the wire, such as reverse()",
        )
        require(
            alone or (everyone and not self.work.stateful),
            f"{self.scheme!r} has several workers compute the same, which goes with neither {self.clients!r} nor "
            "workers that remember something; choose a scheme without redundancy",
        )
        stages = stages_of(self.scheme)
        require(
            everyone or not any(stage.divides for stage in stages),
            f"{self.scheme!r} divides the columns among all workers, and {self.clients!r} chooses some of them in each "
            "round; write gather(...) in place of scatter(...), or let all workers take part",
        )
        places = [i for i, stage in enumerate(stages) if isinstance(stage, Matched)]
        require(
            bool(places) == self.work.matched,
            "workers that send their own order of neurons need a matched(...) behind the wire, and others none; "
            f"got {self.work!r} and {self.scheme!r}",
        )
        early = [stage for stage in stages[: places[0] if places else 0] if isinstance(stage, Aggregator)]
        require(not early, f"{early} compares rows in different orders of neurons; put it behind matched(...)")


@method("run", "run")
class Run(Expression):
    """One training run; its repr is the whole configuration.

    Args:
        workers: n.
        byzantine: which of them the adversary controls.
        faults: injected failures: which worker crashes, hangs, is late or sends random bytes, and when.
        seed: of weights, samples, augmentation, noise and attackers; runs with equal seeds start from equal weights.
        precision: "bf16" computes forward and backward under bfloat16 autocast; weights and rows stay float32.
        device: where every process computes; "cuda" is the process's current device.
        threads: of torch, in each process; equal threads give equal bits in every world.
        evaluate_every: rounds between two tests of the model; the final model is always tested.
        checkpoint_every: rounds between two checkpoints.
        observers: measurements of the workers' rows before the scheme; they never change the run.
        evaluators: measurements of the model whenever it is tested, besides the task's; they never change the run.
        task: the loss that is minimised and the metrics of the test; classification unless another is given.
        stopping: ends the run before its last round when its score does not improve; None trains all rounds.
    """

    data: Data
    model: Model
    phases: tuple[Phase, ...]
    workers: int = 15
    byzantine: Threat = NoAdversary()
    partition: Partition = Iid()
    augment: Augment | None = None
    faults: tuple[Fault, ...] = ()
    seed: int = 0
    precision: Literal["float32", "bf16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    evaluate_every: int = 50
    checkpoint_every: int = 50
    observers: tuple[Observer, ...] = ()
    evaluators: tuple[Evaluator, ...] = ()
    task: Task = Classification()
    stopping: EarlyStopping | None = None

    def validate(self) -> None:
        require(self.workers >= 1, f"run needs workers >= 1, got workers={self.workers}")
        require(len(self.phases) >= 1, "run needs at least one phase")
        for name in ("threads", "evaluate_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"run needs {name} >= 1, got {name}={getattr(self, name)}")
        for name in ("observers", "evaluators"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"run: two {name} are equal; keep one of them")
        self.byzantine.at(0, self.workers, self.seed)
        for fault in self.faults:
            known = fault.worker < self.workers
            require(known, f"{fault!r} names worker {fault.worker}, and there are workers 0 to {self.workers - 1}")

    @property
    def rounds(self) -> int:
        """Rounds of all phases together."""
        return sum(phase.rounds for phase in self.phases)

    def position(self, round_index: int) -> Position:
        """The phase that a round belongs to, and the round's place in it."""
        phase_index, round_in_phase = 0, round_index
        while phase_index < len(self.phases) - 1 and round_in_phase >= self.phases[phase_index].rounds:
            round_in_phase -= self.phases[phase_index].rounds
            phase_index += 1
        if round_in_phase >= self.phases[phase_index].rounds:
            round_in_phase -= self.phases[phase_index].rounds
        work = self.phases[phase_index].work
        start, complete = round_in_phase, True
        if isinstance(work, MultiRoundWork):
            start, complete = work.pass_start(round_in_phase), work.is_complete(round_in_phase)
        return Position(
            round_index=round_index,
            phase_index=phase_index,
            round_in_phase=round_in_phase,
            pass_start=round_index - round_in_phase + start,
            completes_pass=complete,
        )

    def check(self) -> None:
        """Raises ValueError for a scheme with too few workers, or for observers of rows that are hidden."""
        for phase in self.phases:
            phase.check(self.workers)
            for work in (phase.work, phase.adversary):
                if work is not None:
                    work.check_task(self.task)
        secure = any(phase.secure for phase in self.phases)
        require(
            not (secure and self.observers),
            f"{self.observers} look at single rows, and secure=True shows nobody but their sum; take the observers out",
        )
        for observer in self.observers:
            for phase in self.phases if observer.arrived else ():
                shown = any(isinstance(stage, Gather) for stage in stages_of(phase.scheme))
                require(shown, f"{observer!r} looks at rows that gather(...) brings, and {phase.scheme!r} has none")


X = TypeVar("X", bound=Expression)


class NoField(ValueError):
    """Raised when a path names no field of an expression."""


def amend(run: X, path: str, value: Any) -> X:
    """The run, or another expression, with one field changed.

    Args:
        path: field names and positions joined by dots: "seed", "byzantine.count", "phases.0.optimizer.lr". A
            path that begins with a field of a phase ("optimizer.lr", "rounds", "scheme.3.f") changes every phase.
    Raises:
        NoField: there is no such field; the sentence lists the choices.
        ValueError: the value does not fit the field.
    """
    head = path.split(".")[0]
    if isinstance(run, Run) and head in _names(Phase) and head not in _names(Run):
        for i in range(len(run.phases)):
            run = _amend(run, ["phases", str(i), *path.split(".")], value, path)
        return run
    return _amend(run, path.split("."), value, path)


def _names(cls: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _amend(node: Any, keys: list[str], value: Any, path: str) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(node, tuple):
        if not key.isdigit() or int(key) >= len(node):
            raise NoField(f"{path}: {key!r} is no position among {len(node)}; choose from 0 to {len(node) - 1}")
        i = int(key)
        return (*node[:i], _amend(node[i], rest, value, path), *node[i + 1 :])
    if not isinstance(node, Expression):
        raise NoField(f"{path}: {node!r} has no fields, so no {key!r}")
    names = _names(type(node))
    if names == ["stages"] and key.isdigit():
        # the positions of a chain are the positions of its stages
        key, rest = "stages", keys
    if key not in names:
        also = _names(Phase) if isinstance(node, Run) else []
        raise NoField(f"{path}: {node.expression_name} has no field {key!r}; {suggest(key, names + also)}")
    changed = _amend(getattr(node, key), rest, value, path)
    return dataclasses.replace(node, **{key: changed})  # type: ignore[type-var]
