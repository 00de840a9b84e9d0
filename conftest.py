"""What all tests share."""

import signal

# A job in the background of a shell starts with SIGINT ignored, and so would every process that a
# test starts and stops with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
