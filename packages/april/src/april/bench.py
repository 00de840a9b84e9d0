"""Bench cases: what is recovered, how fast, how surely, and what the defences leave.

Each case lies beside its subject: `april.bench_closed_form` (fidelity and speed of the closed
forms), `april.bench_matching` (the optimisation attack), `april.bench_certificate` (proofs without
the original) and `april.bench_defences`.
"""

from __future__ import annotations

from effcv.bench import Case


def cases() -> list[Case]:
    """Returns the cases, cheapest first."""
    from april.bench_certificate import certificate
    from april.bench_closed_form import closed_form, speed
    from april.bench_defences import defences
    from april.bench_matching import matching, matching_speed

    return [closed_form, speed, certificate, defences, matching_speed, matching]
