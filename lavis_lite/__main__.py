"""`python -m lavis_lite`: the command line of the package."""

import os
import signal

usual = signal.getsignal(signal.SIGINT)
if usual is signal.default_int_handler:  # not for a command that ignores Ctrl-C
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # there is nothing to clean up while commands are imported

from lavis_lite.cli.main import entry  # noqa: E402

signal.signal(signal.SIGINT, usual)
entry()
