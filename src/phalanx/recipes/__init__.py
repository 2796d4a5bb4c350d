# SPDX-License-Identifier: Apache-2.0
from phalanx.recipes.atomo_convergence import atomo_convergence as atomo_convergence
from phalanx.recipes.atomo_spectrum import atomo_spectrum as atomo_spectrum
from phalanx.recipes.atomo_tuning import atomo_tuning as atomo_tuning
from phalanx.recipes.atomo_variance import atomo_variance as atomo_variance
from phalanx.recipes.detox import detox_alie as detox_alie
from phalanx.recipes.detox_mean_estimation import detox_mean_estimation as detox_mean_estimation
from phalanx.recipes.draco import draco_mnist as draco_mnist
from phalanx.recipes.draco_cost import draco_cost as draco_cost
from phalanx.recipes.pruning import pufferfish_vs_lth as pufferfish_vs_lth
from phalanx.recipes.quickstart import quickstart as quickstart
from phalanx.recipes.recipe import Recipe as Recipe
from phalanx.recipes.recipe import find as find
from phalanx.recipes.recipe import recipe as recipe
from phalanx.recipes.recipe import recipes as recipes
from phalanx.recipes.robust_mnist import robust_mnist as robust_mnist
