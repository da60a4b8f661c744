"""Commands: python -m tools.NAME."""

import signal
import sys

from runs.libraries import prepare_libraries

if sys.argv[:1] == ["-m"]:  # one of them is starting: Ctrl-C while its libraries load ends it without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
prepare_libraries()  # before torch is imported
