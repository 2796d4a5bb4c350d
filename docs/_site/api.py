# SPDX-License-Identifier: Apache-2.0
"""The pages of the reference, made from the public names of `phalanx` and from docstrings."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """A page of the reference.

    Args:
        namespaces: packages whose public names all stand on it, such as "codecs" for phalanx.codecs.
        names: further names behind "phalanx.", such as "exchange".
        paths: names of other packages, by their full path.
    """

    page: str
    title: str
    words: str
    namespaces: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


# names at the top of the library that no other page has stand on the first one
GROUPS = (
    Group(
        "core",
        "Core types",
        "What a method is written with. [The pattern](../pattern.md) says how the parts fit together.",
    ),
    Group(
        "codecs",
        "Codecs and atoms",
        "What travels. [Codecs](../codecs.md) says which one to take, [ATOMO](../atomo.md) has the mathematics.",
        ("codecs",),
    ),
    Group(
        "local",
        "Local stages",
        "What a worker does to its row before it is sent.",
        names=("clip", "momentum", "noise"),
    ),
    Group(
        "aggregators",
        "Aggregators",
        "Rules that combine the rows of all workers. [Choose a robust rule](../howto/choose_a_rule.md) compares them.",
        ("aggregators",),
    ),
    Group(
        "codes",
        "Codes and votes",
        "Redundant work. See [DRACO](../draco.md), [DETOX](../detox.md) and [votes](../votes.md).",
        ("coding",),
        tuple(
            f"coding.odds.{name}"
            for name in (
                *("byzantine_votes", "expected_byzantine_votes", "probability_group_lost", "worst_votes"),
                *("probability_above", "smallest_r", "bound_expected", "bound_votes", "theorem_73", "Asked"),
            )
        ),
    ),
    Group(
        "attacks",
        "Attacks and faults",
        "Attacks and failures that test rules and servers, and who carries them out. "
        "[Threat models](../threat_models.md) says what the place of an attack means.",
        ("attacks",),
        ("Attack", "PayloadAttack", *(f"adversary.{name}" for name in ("none", "random", "evenly_spaced", "workers"))),
    ),
    Group(
        "loops",
        "DDP, exchange, DiLoCo, silent corruption",
        "For a training loop of your own. See the tutorial on [DDP](../tutorials/ddp.md).",
        names=("ddp.register", "exchange", "DiLoCo", "sdc.check", "sdc.check_determinism", "sdc.Finding"),
    ),
    Group(
        "runs",
        "Runs",
        "A whole training as one expression, and what is observed and measured in it.",
        ("training",),
        (
            *("Run", "Phase", "train", "Interrupted", "Surgery"),
            *(f"optim.{name}" for name in ("sgd", "adam", "adamw", "assign_weights", "cosine", "decay", "milestones")),
        ),
    ),
    Group(
        "data",
        "Data and models",
        "Data sets, their parts for each worker, and networks.",
        ("data", "models"),
    ),
    Group(
        "federated",
        "Federated",
        "Clients with data of their own. See the tutorial on [unlike clients](../tutorials/federated.md).",
        ("federated",),
        ("flower.strategy", "flower.server_app", "flower.client_app"),
    ),
    Group(
        "matching",
        "Matching",
        "Which neurons of several networks are the same. See [matching](../matching.md).",
        ("matching",),
    ),
    Group(
        "lowrank",
        "Low rank and pruning",
        "Smaller networks. See [PUFFERFISH](../pufferfish.md).",
        ("lowrank",),
    ),
    Group(
        "backdoors",
        "Backdoors and theory",
        "Attackers of federated settings. See [backdoors](../backdoors.md) and [theory](../backdoor_theory.md).",
        ("backdoors",),
        paths=tuple(
            f"phalanx_experiments.theory.{name}"
            for name in (
                *("adversarial_examples", "backdoor_from_adversarial", "Backdoor", "hidden_pair", "HiddenPair"),
                *("network_of_3sat", "find_backdoor", "assignment_of", "satisfies"),
            )
        ),
    ),
)


def pages() -> list[tuple[str, str]]:
    """Address and text of each page; every public name stands on one of them."""
    by_page = {group.page: _names(group) for group in GROUPS}
    placed = {id(_value(name)) for names in by_page.values() for name in names}
    # one object may have two names, as gate has, which is also the type Gate
    rest = {id(_value(name)): name for name in _objects("phalanx") if id(_value(name)) not in placed}
    by_page["core"] = list(rest.values())
    return [(f"reference/{g.page}.md", _text(g, [*sorted(by_page[g.page], key=_order), *g.paths])) for g in GROUPS]


def _names(group: Group) -> list[str]:
    inside = [name for space in group.namespaces for name in _objects(f"phalanx.{space}")]
    return [*inside, *(f"phalanx.{name}" for name in group.names)]


def _objects(package: str) -> list[str]:
    """The public classes and functions of a package, by their full path."""
    module = pkgutil.resolve_name(package)
    return [
        f"{package}.{name}"
        for name in module.__all__
        if inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name))
    ]


def _order(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _value(name: str) -> object:
    module, _, short = name.rpartition(".")
    return getattr(pkgutil.resolve_name(module), short)


def _text(group: Group, names: list[str]) -> str:
    return "\n\n".join((f"# {group.title}", group.words, *(_directive(name) for name in names))) + "\n"


def _directive(name: str) -> str:
    """A heading, the call, the docstring; of a class with a capital its methods too, of an expression none."""
    short, value = name.rpartition(".")[2], _value(name)
    whole = short[0].isupper() or name in ("phalanx.sdc.check", "phalanx.exchange", "phalanx.DiLoCo")
    heading = f"## {short} {{ #{name} }}"
    call = f"```python\n{_call(short, value)}\n```"
    assert inspect.isclass(value) or inspect.isfunction(value)
    path = f"{value.__module__}.{value.__qualname__}"  # where the docstring stands
    return f"{heading}\n\n{call}\n\n::: {path}\n    options:\n      members: {'null' if whole else 'false'}"


def _call(name: str, called: object) -> str:
    """How it is called, with types and defaults as they are written."""
    if isinstance(called, type) and (issubclass(called, Exception) or inspect.isabstract(called)):
        return f"class {name}({', '.join(base.__name__ for base in called.__bases__)})"
    assert callable(called)
    signature = inspect.signature(called)
    fields = [_field(parameter) for parameter in signature.parameters.values()]
    keyword = [p.kind is p.KEYWORD_ONLY for p in signature.parameters.values()]
    if any(keyword) and not any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        fields.insert(keyword.index(True), "*")
    line = f"{name}({', '.join(fields)})"
    return line if len(line) <= 90 else f"{name}(\n" + "".join(f"    {field},\n" for field in fields) + ")"


def _field(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        text += f" = {parameter.default!r}"
    return text


def _annotation(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
