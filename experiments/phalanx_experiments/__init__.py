# SPDX-License-Identifier: Apache-2.0
"""The experiments of the dissertation: recipes, measurements, figures, theory and results."""

from phalanx.core.namespace import attach

attach(__name__)
