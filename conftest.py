# SPDX-License-Identifier: Apache-2.0
"""What pytest leaves alone."""

from importlib.util import find_spec

# an optional package that this module is made for
collect_ignore = [] if find_spec("flwr") else ["src/phalanx/integrations/flower"]
