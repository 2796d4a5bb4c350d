# SPDX-License-Identifier: Apache-2.0
"""Several hosts with a slow network between them, on one machine, and measurements on them."""
