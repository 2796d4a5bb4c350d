# SPDX-License-Identifier: Apache-2.0
"""How unusual edge cases are to a trained model: figure 8.1."""

from __future__ import annotations

import phalanx as px
import phalanx_experiments as pe
from phalanx.tools.runner.measurement import Job
from phalanx.tools.runner.recipe import recipe
from phalanx_experiments.figures.edge_density import edge_density_tables, plot_edge_density


@recipe("edge-density", scales=("smoke", "laptop"), plot=plot_edge_density, tables=edge_density_tables)
def edge_density(scale: str) -> dict[str, Job]:
    """Figure 8.1: log densities of ordinary and edge-case examples under a mixture of a model's outputs."""
    styles: dict[str, px.backdoors.EdgeCases] = {
        "inverted": px.backdoors.rare_styles(style="inverted"),
        "rotated": px.backdoors.rare_styles(style="rotated"),
        "thin": px.backdoors.rare_styles(style="thin"),
    }
    if scale == "smoke":
        return {name: pe.edge_density(edges=edges) for name, edges in styles.items()}
    data, model = px.data.mnist(train=10_000, test=2_000), px.models.lenet(channels=(16, 32), hidden=128)
    return {name: pe.edge_density(data, model, edges) for name, edges in {"ARDIS": pe.ardis(), **styles}.items()}
