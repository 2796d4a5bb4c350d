# SPDX-License-Identifier: Apache-2.0
"""A red team study on the disk: the request, the findings, and the report."""

from __future__ import annotations

import json
from dataclasses import asdict

from phalanx.tools.redteam.exports import JUNIT, SARIF, junit, sarif
from phalanx.tools.redteam.findings import REPORT, Findings, RedTeamRequest
from phalanx.tools.redteam.page import page
from phalanx.tools.report.backdoors import plot_backdoors
from phalanx.tools.report.collect import collect
from phalanx.tools.runner.study import StudyFolder
from phalanx.training.run_folder import write_json

REQUEST = "redteam.json"


class RedTeamFolder:
    """The folder of a study, with ``redteam.json``, ``report.html``, and the verdicts as JSON, SARIF and JUnit XML."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder

    @property
    def request(self) -> RedTeamRequest:
        """The request of the study.

        Raises:
            ValueError: the folder holds no red team study.
        """
        file = self.folder.path / REQUEST
        if not file.exists():
            raise ValueError(f"{self.folder.path} holds no red team study: there is no {REQUEST} in it")
        try:
            return RedTeamRequest.from_json(json.loads(file.read_text()))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from None

    @request.setter
    def request(self, request: RedTeamRequest) -> None:
        write_json(self.folder.path / REQUEST, asdict(request))

    def found(self) -> Findings:
        """What there is by now."""
        study = self.folder.study
        results = collect([self.folder.path])
        about = json.loads((self.folder.path / "study.json").read_text())
        return Findings(self.folder.path, self.request, study, results, about)

    def write(self) -> Findings:
        """Writes the report and what it is made of, finished or not."""
        findings = self.found()
        write_json(self.folder.path / "summary.json", self.folder.results(findings.study))
        write_json(self.folder.path / "verdicts.json", findings.to_json())
        write_json(self.folder.path / SARIF, sarif(findings))
        (self.folder.path / JUNIT).write_text(junit(findings), encoding="utf-8")
        if findings.results:
            plot_backdoors(findings.results, self.folder.title(findings.study), self.folder.path / "plot.png")
        (self.folder.path / REPORT).write_text(page(findings), encoding="utf-8")
        return findings
