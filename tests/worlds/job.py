"""Under torchrun: runs a script, with its arguments, as the process's own, and leaves when it has ended."""

import runpy
import sys

from phalanx.launch import leave

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
    leave()
