# SPDX-License-Identifier: Apache-2.0
"""phalanx redteam: runs attacks against aggregation rules, judges each rule, and writes a report."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phalanx.core.expression import require
from phalanx.tools.cli.common import Imports, Json, Scale, Seed, Settings, check_jobs, print_json, user_command
from phalanx.tools.cli.study_progress import run_with_progress

if TYPE_CHECKING:
    from phalanx.tools.redteam.findings import Findings
    from phalanx.tools.runner.study import StudyFolder

DEFAULT_RECIPE = "edge-case-mnist"


@user_command
def redteam(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE_OR_CONFIG]",
            help=f"A recipe of attacks, or your own setting; {DEFAULT_RECIPE} if left out.",
        ),
    ] = None,
    scale: Scale = None,
    edges: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="Your own setting needs it: the examples that the attacker labels wrongly."),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            metavar="ROUNDS", help="For your own setting: rounds from one attack to the next; 10 if left out."
        ),
    ] = None,
    attacker_share: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="For your own setting: the attacker's share of the edge cases, 0 to 1; 0.5 if left out.",
        ),
    ] = None,
    norm: Annotated[
        float | None,
        typer.Option(
            metavar="LENGTH",
            help="For your own setting: norm of a client's change of the weights; measured if left out.",
        ),
    ] = None,
    settings: Settings = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT", help="Only this attack, this rule, or this attack: rule; may be repeated."),
    ] = None,
    seed: Seed = None,
    imports: Imports = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", help="Do every run with N seeds, from --seed on; 1 if left out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; runs/TIME-redteam-RECIPE if left out.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on in this folder, or judge its results again.")] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="BEFORE", help="With --resume: print what changed since this other folder's study."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", help="Number of runs at the same time; one for each core if left out.")
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(metavar="RULE", help="Apply policies and advice to this rule; may be repeated.")
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(metavar="POLICY", help="A policy, such as 'attack_success > 0.1 exit 4'; may be repeated."),
    ] = None,
    excess_limit: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="A rule that raises attack success by more is broken; 0.1 if left out."),
    ] = None,
    accuracy_limit: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="A rule that loses more main accuracy is costly; 0.025 if left out."),
    ] = None,
    parity_limit: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="A rule that loses more accuracy parity is unfair; 0.1 if left out."),
    ] = None,
    choice_limit: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="A rule that takes unusual clients below this share of the others' rate is unfair; 0.5 if left out.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Attacks a federated setting, and judges each rule.

    It says which rules withstand backdoors, what they cost, and to which clients they are unfair. Your own setting is
    an honest run(...) with local_training, or a file that holds one, together with --edges. The exit code is 0; 1 or
    the policy's own code if a policy fails; 3 if a number that a policy needs is missing; 2 for wrong input.

    \b
    Examples:
      phalanx redteam --scale smoke
      phalanx redteam --scale laptop --seeds 3 --jobs 8
      phalanx redteam setting.txt --edges "own_edges('unusual', target=1)" \\
        --fail-if "attack_success > 0.1"
      phalanx redteam --only Multi-Krum --fail-if "excess > 0.1" \\
        --fail-if "accuracy_lost > 0.05 exit 4" --json
      phalanx redteam --resume runs/2026-01-31-120000-redteam-edge-case-mnist
      phalanx redteam --resume after --compare before
    """
    from phalanx.core.registry import import_extensions
    from phalanx.distributed.job import Processes
    from phalanx.tools.redteam.folder import RedTeamFolder
    from phalanx.tools.redteam.request import build_red_team_study
    from phalanx.tools.runner.process_pool import cores
    from phalanx.tools.runner.study import StudyFolder
    from phalanx.training.run_folder import new_folder, slug

    require("RANK" not in os.environ, "redteam starts processes of its own; give --jobs, and leave torchrun out")
    jobs = cores() if jobs is None else jobs
    check_jobs(jobs)
    import_extensions(imports or [])
    new_limits = {
        "excess": excess_limit,
        "accuracy": accuracy_limit,
        "parity": parity_limit,
        "choice": choice_limit,
    }
    require(compare is None or resume is not None, "--compare needs the other study: add --resume FOLDER")
    options = {"edges": edges, "every": every, "attacker": attacker_share, "norm": norm}
    options = {name: value for name, value in options.items() if value is not None}
    if resume is not None:
        unchangeable = (source, scale, settings, only, seed, seeds, out)
        require(
            not options and all(value is None for value in unchangeable),
            f"{resume} goes on as it began; only --rule, --fail-if, the limits and --jobs may change",
        )
        red_team = RedTeamFolder(StudyFolder(resume))
        study, request = red_team.folder.study, red_team.request
    else:
        red_team = None
        study, request = build_red_team_study(
            source or _default_recipe(), scale, options, settings or [], only or [], seed, 1 if seeds is None else seeds
        )
    limits = replace(request.limits, **{name: value for name, value in new_limits.items() if value is not None})
    request = replace(
        request, limits=limits, judged=tuple(rule or request.judged), policies=tuple(fail_if or request.policies)
    )
    request.check(study)
    if red_team is None:
        red_team = RedTeamFolder(
            StudyFolder.create(study, out or new_folder(f"redteam-{slug(study.recipe)}"), sys.argv)
        )
        for notice in (*study.notices, *request.notes):
            typer.echo(notice, err=True)
    red_team.request = request
    try:
        resume_command = partial(_resume_command, jobs)
        run_with_progress(study, red_team.folder, red_team.folder.finished(study), resume_command, Processes(), jobs)
    finally:
        findings = red_team.write()
    if compare is not None:
        _compare(compare, findings, as_json)
    else:
        _report(findings, as_json)
    if findings.exit_code:
        raise typer.Exit(findings.exit_code)


def _default_recipe() -> str:
    """The name of the default recipe.

    Raises:
        ValueError: the package that has this recipe is not installed.
    """
    from phalanx.tools.runner.recipe import EXPERIMENTS, find_or_none

    require(
        find_or_none(DEFAULT_RECIPE) is not None,
        f"the default recipe {DEFAULT_RECIPE} comes with pip install {EXPERIMENTS}; without it, give a federated "
        'setting of your own, such as: phalanx redteam setting.txt --edges "rare_styles(source=7, target=1)"',
    )
    return DEFAULT_RECIPE


def _resume_command(jobs: int, folder: StudyFolder) -> str:
    """The command that resumes the study of a folder."""
    return f"phalanx redteam --resume {shlex.quote(str(folder.path))} --jobs {jobs}"


def _compare(before: Path, after: Findings, as_json: bool) -> None:
    """Prints what changed from one study to another."""
    from phalanx.tools.redteam.comparison import BETTER, WORSE, compare, sheet
    from phalanx.tools.redteam.folder import RedTeamFolder
    from phalanx.tools.report import tables
    from phalanx.tools.runner.study import StudyFolder

    compared = compare(RedTeamFolder(StudyFolder(before)).found(), after)
    if as_json:
        print_json({"before": str(before), "after": str(after.path), "compared": [c.to_json() for c in compared]})
        return
    lines = sheet(compared)
    tables.console().print(tables.plain_table(lines.title, lines.header, lines.words()))
    words = [each.word for each in compared]
    typer.echo(f"{words.count(BETTER)} better, {words.count(WORSE)} worse, of {len(words)}")


def _report(findings: Findings, as_json: bool) -> None:
    from phalanx.tools.redteam.findings import REPORT
    from phalanx.tools.redteam.tables import costs, fairness, verdicts
    from phalanx.tools.report import tables

    if as_json:
        print_json(findings.to_json())
        return
    console = tables.console()
    for sheet in (verdicts(findings.standings), costs(findings.standings), fairness(findings.standings)):
        console.print(tables.plain_table(sheet.title, sheet.header, sheet.words()))
    for sentence in findings.advice:
        typer.echo(sentence)
    for outcome in findings.outcomes:
        word = {True: "fails", False: "holds", None: "is unknown"}[outcome.fails]
        cases = "; ".join(f"{case.attack}: {case.rule} ({case.seen})" for case in outcome.decisive)
        typer.echo(f"policy {outcome.policy.text!r} {word}{f': {cases}' if cases else ''}")
    typer.echo(f"report  {findings.path / REPORT}\nfolder  {findings.path}")
