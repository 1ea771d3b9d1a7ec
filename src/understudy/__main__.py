"""python -m understudy"""

import os
import sys
from contextlib import suppress

from .cli import main

status = main()
if status == 130:
    # Python remembers an interrupt that comes during exec, which makes dataclasses, even after it was handled. Then
    # `python -m` would end by the signal instead of with this status.
    with suppress(OSError):  # the terminal may be closed
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
sys.exit(status)
