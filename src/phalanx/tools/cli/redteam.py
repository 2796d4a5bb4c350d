# SPDX-License-Identifier: Apache-2.0
"""phalanx redteam: attacks against rules, a verdict on each, and a report."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from phalanx.core.expression import require
from phalanx.distributed.job import Processes
from phalanx.tools.cli.common import Json, Scale, Seed, Settings, check_jobs, print_json, said
from phalanx.tools.cli.conducted import conducted
from phalanx.tools.redteam.audit import REPORT, Audit, Findings
from phalanx.tools.redteam.order import audited
from phalanx.tools.redteam.sheets import costs, fairness, verdicts
from phalanx.tools.report import tables
from phalanx.tools.runner.process_pool import cores
from phalanx.tools.runner.recipe import slug
from phalanx.tools.runner.study import StudyFolder
from phalanx.training.run_folder import new_folder

USUAL = "edge-case-mnist"


@said
def redteam(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE_OR_CONFIG]", help=f"A recipe of attacks, or a setting of your own; {USUAL} if left out."
        ),
    ] = None,
    scale: Scale = None,
    edges: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="Of a setting of your own, which needs it: what the attacker calls wrongly."),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(metavar="ROUNDS", help="Of your own: from one attack to the next; 10 if left out."),
    ] = None,
    attacker_share: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Of your own: of the edge cases, what the attacker has, 0 to 1; 0.5 if left out."
        ),
    ] = None,
    norm: Annotated[
        float | None,
        typer.Option(metavar="LENGTH", help="Of your own: of a client's change of the weights; measured if left out."),
    ] = None,
    settings: Settings = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT", help="Only this attack, rule, or attack: rule; may be repeated."),
    ] = None,
    seed: Seed = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", help="Every run with N seeds, from --seed on; 1 if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; runs/TIME-audit-RECIPE if left out.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on in this folder where it stopped, or judge it anew.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", help="Runs at a time; one for each core if left out.")
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(metavar="RULE", help="Policies and advice are about this rule; may be repeated.")
    ] = None,
    fail_if: Annotated[
        list[str] | None, typer.Option(metavar="POLICY", help="'attack_success > 0.1 exit 4'; may be repeated.")
    ] = None,
    excess_limit: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="More attack success gained is broken; 0.1 if left out."),
    ] = None,
    accuracy_limit: Annotated[
        float | None, typer.Option(metavar="SHARE", help="More main accuracy lost is costly; 0.025 if left out.")
    ] = None,
    parity_limit: Annotated[
        float | None, typer.Option(metavar="SHARE", help="More accuracy parity lost is unfair; 0.1 if left out.")
    ] = None,
    choice_limit: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Unusual clients taken at less than this share of the others' rate is unfair; 0.5 if left out.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Attacks a federated setting, and judges each rule.

    It says which rules stand backdoors, at what cost, and unfair to whom. A setting of your own is an honest run(...)
    with local_training, or a file that holds one, with --edges. The exit code is 0; 1 or the policy's own if a policy
    fails; 3 if a number that a policy needs is missing; 2 for wrong input.

    \b
    Examples:
      phalanx redteam --scale smoke
      phalanx redteam --scale laptop --seeds 3 --jobs 8
      phalanx redteam setting.txt --edges "own_edges('unusual', target=1)" \\
        --fail-if "attack_success > 0.1"
      phalanx redteam --only Multi-Krum --fail-if "excess > 0.1" \\
        --fail-if "accuracy_lost > 0.05 exit 4" --json
      phalanx redteam --resume runs/2026-01-31-120000-audit-edge-case-mnist
    """
    require("RANK" not in os.environ, "audit starts processes of its own; give --jobs, and leave torchrun out")
    jobs = cores() if jobs is None else jobs
    check_jobs(jobs)
    given = {"excess": excess_limit, "accuracy": accuracy_limit, "parity": parity_limit, "choice": choice_limit}
    own = {"edges": edges, "every": every, "attacker": attacker_share, "norm": norm}
    own = {name: value for name, value in own.items() if value is not None}
    if resume is not None:
        fixed = (source, scale, settings, only, seed, seeds, out)
        require(
            not own and all(value is None for value in fixed),
            f"{resume} goes on as it began; only --rule, --fail-if, the limits and --jobs may change",
        )
        made = Audit(StudyFolder(resume))
        study, order = made.folder.study, made.order
    else:
        made = None
        study, order = audited(
            source or USUAL, scale, own, settings or [], only or [], seed, 1 if seeds is None else seeds
        )
    limits = replace(order.limits, **{name: value for name, value in given.items() if value is not None})
    order = replace(order, limits=limits, judged=tuple(rule or order.judged), policies=tuple(fail_if or order.policies))
    order.check(study)
    if made is None:
        made = Audit(StudyFolder.create(study, out or new_folder(f"audit-{slug(study.recipe)}"), sys.argv))
        for notice in (*study.notices, *order.notes):
            typer.echo(notice, err=True)
    made.order = order
    try:
        again = partial(_again, jobs)
        conducted(study, made.folder, made.folder.finished(study), again, Processes(), jobs)
    finally:
        found = made.write()
    _report(found, as_json)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _again(jobs: int, folder: StudyFolder) -> str:
    """The command that resumes."""
    return f"phalanx redteam --resume {shlex.quote(str(folder.path))} --jobs {jobs}"


def _report(found: Findings, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    screen = tables.console()
    for sheet in (verdicts(found.standings), costs(found.standings), fairness(found.standings)):
        screen.print(tables.plain_table(sheet.title, sheet.header, sheet.words()))
    for sentence in found.advice:
        typer.echo(sentence)
    for outcome in found.outcomes:
        word = {True: "fails", False: "holds", None: "cannot be told"}[outcome.fails]
        where = "; ".join(f"{case.attack}: {case.rule} ({case.seen})" for case in outcome.decisive)
        typer.echo(f"policy {outcome.policy.text!r} {word}{f': {where}' if where else ''}")
    typer.echo(f"report  {found.path / REPORT}\nfolder  {found.path}")
