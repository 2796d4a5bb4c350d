"""A job: `phalanx ...` with work that some processes compute unlike; what it says comes out on stdout."""

import os

from phalanx.tools.cli.app import main
from tests.distributed import unlike

assert unlike.Unlike
if os.environ["RANK"] == "0":
    os.dup2(1, 2)
main()
