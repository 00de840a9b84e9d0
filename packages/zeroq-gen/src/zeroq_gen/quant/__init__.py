"""The quantiser: ranges, rounding, repair. A file for each step, every step can be left out."""
