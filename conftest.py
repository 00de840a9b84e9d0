"""What all tests share."""

import os
import signal

from hypothesis import settings

# The same examples in every run, so that a red run is one of the change at hand;
# HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# A job in the background of a shell starts with SIGINT ignored, and so would every process that a
# test starts and stops with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
