# SPDX-License-Identifier: Apache-2.0
"""Which rules hold on MNIST, against a crude attack and a clever one."""
