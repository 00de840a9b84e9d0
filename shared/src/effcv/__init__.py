"""The core that the packages of effcv share: data, metrics, run time, bench types, errors.

Importing it costs no torch; every part is imported where it is used.
"""

__version__ = "0.1.0"
