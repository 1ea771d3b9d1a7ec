"""python -m understudy"""

import os
import sys

from .cli import main

status = main()
if status == 130:
    # An interrupt that comes while Python runs a text of code (so are dataclasses made) is remembered by it, however
    # it was dealt with, and `python -m` would end by the signal in place of the status.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
