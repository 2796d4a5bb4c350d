# SPDX-License-Identifier: Apache-2.0
"""`python -m phalanx`, and `torchrun -m phalanx`."""

from phalanx.tools.cli.app import main

if __name__ == "__main__":
    main()
