# SPDX-License-Identifier: Apache-2.0
"""Grids of attacks against rules whose runs were never carried out."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import phalanx as px
from phalanx.tools.redteam.findings import Findings, RedTeamRequest
from phalanx.tools.redteam.folder import RedTeamFolder
from phalanx.tools.redteam.grid import fairly
from phalanx.tools.redteam.setting import ATTACKS, Defence, Setting, attacked
from phalanx.tools.runner.study import Study, StudyFolder
from phalanx.training.phase import Run
from tests.backdoors.digits_setting import setting

SMOKE = replace(setting(), model=px.models.mlp((4,)), rounds=8, often=8, every=2)
RULES = {"FedAvg": px.aggregators.mean(), "Krum": px.aggregators.krum(f=1), "median": px.aggregators.median()}


def run(rule: px.Stage, attack: str = "none", seed: int = 0, mine: Setting = SMOKE) -> Run:
    return fairly(replace(attacked(mine, Defence(rule, 1.0), ATTACKS[attack]), seed=seed))


def lines(
    success: float, accuracy: float = 0.9, parity: float | None = 0.8, rounds: int = 8, **more: Any
) -> list[dict[str, Any]]:
    """What a run would have logged that was tested in every round: nothing gets in before the later half."""
    examined = {} if parity is None else {"parity()": {"ratio": parity}}
    return [
        {
            "step": step,
            "loss": 0.5,
            "byzantine": [0],
            "clients": list(range(step % 2, 10 + step % 2)),
            "bytes_up": 100,
            **dict.fromkeys(("work_s", "scheme_s", "finish_s"), 0.1),
            "accuracy": accuracy,
            "examined": {"backdoor()": {"attack_success": success if step >= rounds // 2 else 0.0}, **examined},
            **more,
        }
        for step in range(rounds)
    ]


def red_team_folder(
    path: Path,
    runs: Mapping[str, Run],
    logged: Mapping[str, list[dict[str, Any]]],
    request: RedTeamRequest | None = None,
    **more: Any,
) -> RedTeamFolder:
    """The folder of a red team study whose runs logged this; those that logged nothing have not begun.

    Args:
        more: "unended", labels of runs that have not ended.
    """
    made = RedTeamFolder(StudyFolder.create(Study("made", None, (), runs), path))
    made.request = request or RedTeamRequest("made")
    for label, said in logged.items():
        folder = px.training.RunFolder(made.folder.run_path(label))
        folder.begin(repr(runs[label]))
        for line in said:
            # by the exam of the run's own backdoor
            examined = {
                repr(runs[label].evaluators[0]) if name == "backdoor()" else name: x
                for name, x in line["examined"].items()
            }
            folder.log({**line, "examined": examined})
        folder.close()
        if label not in more.get("unended", ()):
            done = {"rounds": len(said), "lost_rounds": 0, "round_s": 0.3}
            folder.finish({"accuracy": said[-1]["accuracy"], "seed": runs[label].seed, **done})
    return made


def findings(path: Path, runs: Mapping[str, Run], logged: Mapping[str, list[dict[str, Any]]], **more: Any) -> Findings:
    return red_team_folder(path, runs, logged, **more).found()
