# SPDX-License-Identifier: Apache-2.0
"""The experiments of the dissertation: recipes, measurements, figures, theory, and what came out."""

from phalanx.core.namespace import attach

attach(__name__)
