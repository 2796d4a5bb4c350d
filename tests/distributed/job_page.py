"""A job: a script of the documentation, in the folder that is named first."""

import os
import runpy
import sys

os.chdir(sys.argv[1])
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
