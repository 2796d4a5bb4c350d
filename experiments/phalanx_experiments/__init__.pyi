# SPDX-License-Identifier: Apache-2.0
from phalanx_experiments.edge_cases.ardis import Ardis as ardis
from phalanx_experiments.edge_cases.athens import Athens as athens
from phalanx_experiments.edge_cases.director import Director as director
from phalanx_experiments.edge_cases.southwest import Southwest as southwest
from phalanx_experiments.edge_cases.southwest import SouthwestHonest as southwest_honest
from phalanx_experiments.measurements.density import EdgeCaseNess as EdgeCaseNess
from phalanx_experiments.measurements.density import edge_case_ness as edge_case_ness
from phalanx_experiments.measurements.edge_density import EdgeDensity as edge_density
from phalanx_experiments.measurements.factorization import StepCost as step_cost
from phalanx_experiments.measurements.factorization import SvdCost as svd_cost
from phalanx_experiments.measurements.iteration_cost import IterationCost as iteration_cost
from phalanx_experiments.measurements.local_models import LocalModels as local_models
from phalanx_experiments.measurements.matched_filters import MatchedFilters as matched_filters
from phalanx_experiments.measurements.mean_estimation import MeanEstimation as mean_estimation

__all__ = [
    "EdgeCaseNess",
    "ardis",
    "athens",
    "director",
    "edge_case_ness",
    "edge_density",
    "iteration_cost",
    "local_models",
    "matched_filters",
    "mean_estimation",
    "southwest",
    "southwest_honest",
    "step_cost",
    "svd_cost",
]
