# SPDX-License-Identifier: Apache-2.0
"""The reference of the library, made from what `phalanx` exports and from docstrings."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import dataclass

import phalanx


@dataclass(frozen=True)
class Group:
    """A page: the exports of these modules, and further names by their full path."""

    page: str
    title: str
    words: str
    modules: tuple[str, ...]
    further: tuple[str, ...] = ()


GROUPS = (
    Group(
        "core",
        "Core types",
        "What a method is written with. [The pattern](../pattern.md) says how the parts fit together.",
        ("expression", "parser", "layout", "stack", "round", "stage", "codec", "aggregator", "gate", "world", "worlds"),
    ),
    Group(
        "codecs",
        "Codecs and atoms",
        "What travels. [Codecs](../codecs.md) says which one to take, [ATOMO](../atomo.md) has the mathematics.",
        ("codecs", "atoms", "bytestring", "lowrank.power_sgd"),
    ),
    Group("local", "Local stages", "What a worker does to its row before the wire.", ("local",)),
    Group(
        "aggregators",
        "Aggregators",
        "Rules behind the wire. [Choose a robust rule](../howto/choose_a_rule.md) compares them.",
        ("aggregators",),
    ),
    Group(
        "codes",
        "Codes and votes",
        "Redundant work. See [DRACO](../draco.md), [DETOX](../detox.md) and [votes](../votes.md).",
        ("codes",),
        tuple(
            f"phalanx.coding.odds.{name}"
            for name in (
                *("byzantine_votes", "expected_byzantine_votes", "probability_group_lost", "worst_votes"),
                *("probability_above", "smallest_r", "bound_expected", "bound_votes", "theorem_73", "Asked"),
            )
        ),
    ),
    Group(
        "attacks",
        "Attacks and faults",
        "Drills for rules and servers. [Threat models](../threat_models.md) says what the place of an attack means.",
        ("attack", "attacks"),
        ("phalanx.fault.Crash", "phalanx.fault.Hang", "phalanx.fault.Delay", "phalanx.fault.Garble"),
    ),
    Group(
        "loops",
        "DDP, exchange, outer, audit",
        "For a training loop of your own. See the tutorial on [DDP](../tutorials/ddp.md).",
        ("ddp", "exchange", "outer", "audit", "agreement", "finding"),
    ),
    Group(
        "runs",
        "Runs",
        "A whole training as one expression, and what is observed and measured in it.",
        (
            *("phase", "train", "work", "optimizer", "selection", "results", "stop", "surgery"),
            *("observers", "exam", "exams", "measurement", "measurements"),
        ),
    ),
    Group(
        "data",
        "Data and models",
        "What runs are trained on, and how it is dealt to workers.",
        ("data", "models", "macs"),
    ),
    Group(
        "federated",
        "Federated",
        "Clients with data of their own. See the tutorial on [unlike clients](../tutorials/federated.md).",
        ("federated",),
        (
            "phalanx.integrations.flower.strategy",
            "phalanx.integrations.flower.server_app",
            "phalanx.integrations.flower.client_app",
        ),
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
        ("lowrank", "pruning"),
    ),
    Group(
        "backdoors",
        "Backdoors and theory",
        "Attackers of federated settings. See [backdoors](../backdoors.md) and [theory](../backdoor_theory.md).",
        ("backdoors",),
        tuple(
            f"phalanx_experiments.theory.{name}"
            for name in (
                *("adversarial_examples", "backdoor_from_adversarial", "Backdoor", "hidden_pair", "HiddenPair"),
                *("network_of_3sat", "find_backdoor", "assignment_of", "satisfies"),
            )
        ),
    ),
)


def pages() -> list[tuple[str, str]]:
    """Address and text of each page; every export stands on one of them."""
    names: dict[str, list[str]] = {group.page: [] for group in GROUPS}
    for name, value in sorted(vars(phalanx).items(), key=lambda pair: pair[0].lower()):
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
            names[_page(value.__module__)].append(f"phalanx.{name}")
    return [(f"reference/{g.page}.md", _text(g, [*names[g.page], *g.further])) for g in GROUPS]


def _page(module: str) -> str:
    """The group whose module is the longest that holds this one."""
    inner = module.removeprefix("phalanx.")
    fitting = [(len(m), g.page) for g in GROUPS for m in g.modules if f"{inner}.".startswith(f"{m}.")]
    if not fitting:
        raise ValueError(f"no page of the reference has {module}; name it in a group of docs/_site/api.py")
    return max(fitting)[1]


def _text(group: Group, names: list[str]) -> str:
    return "\n\n".join((f"# {group.title}", group.words, *(_directive(name) for name in names))) + "\n"


def _directive(name: str) -> str:
    """A heading, the call, the docstring; of a class with a capital its methods too, of an expression none."""
    module, _, short = name.rpartition(".")
    value = pkgutil.resolve_name(f"{module}:{short}")
    whole = short[0].isupper() or name in ("phalanx.sdc.check", "phalanx.exchange", "phalanx.DiLoCo")
    heading = f"## {short} {{ #{name} }}"
    call = f"```python\n{_call(short, value)}\n```"
    path = f"{value.__module__}.{value.__qualname__}"  # audit, exchange and outer are modules, too
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
