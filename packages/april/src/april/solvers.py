"""Least squares A X = B whose A is factored once: every right-hand side and every cutoff is cheap.

Read top to bottom: `Factor` splits B into what the span of A explains and the rest, which can only
be noise (`Projection`); `shrunk` and `ridge` solve with that noise; `choose_rank` truncates. All in
float64.

Factoring. Householder QR makes a small triangle R of a tall A; singular values are the triangle's.
Q is A R^-1 where what that loses in orthogonality (cond times float64's rounding) is far below the
rounding that A arrived with, which spares most of the time; elsewhere a product of reflections.
Singular vectors are found only when asked for.

Noise. How far the small singular directions are trusted is decided without the truth (ours). What
of B lies outside the span of A measures *all* noise: A is a gradient too, so its own rounding
appears there as well (errors in variables). Along direction i the solution errs by sigma / s_i.

Two priors, since two kinds of A occur. The singular directions of dl/dpos mix the tokens of one
picture, and pictures have most of their energy along the first: `shrunk` reads the size of the
unknown along each direction off the data. Those of a patch projection mix pixels: `ridge` takes
one size for all, and needs no singular vectors. Chosen on photographs set aside for tuning: in the
other's place `ridge` lost 4 dB on average, `shrunk` up to 3 dB (projections with random weights).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from effcv.errors import ArgumentError, choose
from effcv.runtime.seed import generator

EPSILON = torch.finfo(torch.float64).eps
CERTAIN = 1e-2  # of the unknown's own size: below it no direction is in doubt
WINDOW = 10  # directions whose size bounds that of the next
LEAST_RIDGE = 1e-10  # sqrt(lambda) over ||A||: below it rounding would speak
SQUARABLE = 1e-6  # the same, from which its square stands above rounding by four digits
INDIRECT = 1e-3  # loss of orthogonality over the rounding of A itself, up to which Q is A R^-1
SKETCH = 32  # columns that stand for all where only a norm is wanted
RankRule = Literal["energy", "discrepancy", "gcv"]


@dataclass(frozen=True)
class Projection:
    """A right-hand side B (m, P) seen from the span of A.

    Attributes:
        inside: Q^T B, (r, P): its coordinates in the span.
        outside: ||B - Q Q^T B||, what no X explains; from 32 random sums of its columns where it
            has more than 256 (within 1 % for noise, 13 % for a single direction).
        total: ||B||, by Pythagoras.
        degrees: Numbers that ``outside`` is the norm of: (m - r) P.
    """

    inside: Tensor
    outside: float
    total: float
    degrees: int

    @property
    def residual(self) -> float:
        """``outside`` relative to ``total``: the smallest residual that any X reaches."""
        return self.outside / self.total if self.total else 0.0

    def noise(self, rows: int, *, epsilon: float) -> float:
        """Standard deviation of the noise of one number of B (m, P).

        Args:
            rows: m.
            epsilon: Rounding of B's type. Where the span is everything, nothing lies outside of it
                and two roundings are assumed: 1.5 to 1.8 are found in float32 gradients of ViTs.
        """
        rms = self.total / math.sqrt(rows * self.inside.shape[1])
        if not self.degrees:
            return 2 * epsilon * rms
        return max(self.outside / math.sqrt(self.degrees), EPSILON * rms)


@dataclass(frozen=True)
class Solution:
    """X and how well each of its singular directions is known.

    Attributes:
        x: (n, P).
        factors: Share in [0, 1] of each direction that was kept, (r,).
        variance: Expected squared error of one number along each direction, (r,).
        known: The same, without what was dropped or drowned: at least this much is wrong, (r,).
    """

    x: Tensor
    factors: Tensor
    variance: Tensor
    known: Tensor

    @property
    def rank(self) -> int:
        """Directions of which at least half was kept."""
        return int((self.factors >= 0.5).sum())


class Factor:
    """A (m, n), factored for any number of solves; wide matrices give minimum-norm solutions.

    Args:
        matrix: Two-dimensional; computed with in float64.
        epsilon: Relative rounding that it arrived with, before float64.

    Raises:
        ArgumentError: It is not a matrix, is empty, or not finite.
    """

    def __init__(self, matrix: Tensor, *, epsilon: float = EPSILON) -> None:
        if matrix.ndim != 2 or not matrix.numel() or not matrix.norm().isfinite():
            raise ArgumentError(
                f"a finite matrix with rows and columns expected, found {tuple(matrix.shape)}"
            )
        self.rows, self.columns = matrix.shape
        self.wide = self.columns > self.rows
        self.epsilon = epsilon
        # A = Q R where it is tall, A^T = Q R where it is wide.
        self._tall = (matrix.mT if self.wide else matrix).double()
        self._r: Tensor = torch.linalg.qr(self._tall, mode="r").R

    @cached_property
    def _q(self) -> Tensor:
        pivots = self._r.diagonal().abs()  # their ratio is at most the condition number
        worst = INDIRECT * self.epsilon / EPSILON
        if pivots.max() < worst * pivots.min() and self.cond < worst:
            indirect: Tensor = torch.linalg.solve_triangular(
                self._r, self._tall, upper=True, left=False
            )
            return indirect
        reflected: Tensor = torch.linalg.qr(self._tall).Q
        return reflected

    @property
    def smallest_pivot(self) -> float:
        """Smallest diagonal entry of R: no singular value is all above it."""
        return float(self._r.diagonal().abs().min())

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, s, V^T of the triangle R."""
        u, s, vh = torch.linalg.svd(self._r)
        return u, s, vh

    @cached_property
    def singular_values(self) -> Tensor:
        """(min(m, n),), descending; cheaper than the vectors where those are not needed."""
        return self.svd[1] if "svd" in self.__dict__ else torch.linalg.svdvals(self._r)

    @property
    def cond(self) -> float:
        """Largest over smallest singular value; infinite where that is zero."""
        s = self.singular_values
        return float(s[0] / s[-1]) if s[-1] > 0 else float("inf")

    @property
    def numerical_rank(self) -> int:
        """Singular values above float64's own error, at least 1."""
        s = self.singular_values
        return max(1, int((s > s[0] * EPSILON * max(self.rows, self.columns)).sum()))

    def project(self, rhs: Tensor, *, left: Tensor | None = None) -> Projection:
        """Splits B (m, P) into what the span of A explains and the rest.

        Args:
            rhs: B; or M (k, P) with ``left``.
            left: L (m, k), where B is the product L M: it is then never formed.

        Raises:
            ArgumentError: B has not m rows.
        """
        inner = self.rows if left is None else left.shape[-1]
        if rhs.ndim != 2 or len(rhs) != inner or (left is not None and len(left) != self.rows):
            shapes = [tuple(part.shape) for part in (left, rhs) if part is not None]
            raise ArgumentError(f"a right-hand side of {self.rows} rows expected, found {shapes}")
        rhs, left = rhs.double(), None if left is None else left.double()

        def product(right: Tensor) -> Tensor:
            found: Tensor = right if left is None else left @ right
            return found

        if self.wide:
            inside = product(rhs)
        else:
            inside = (self._q.mT if left is None else self._q.mT @ left) @ rhs
        if self.columns >= self.rows:  # the span is everything
            return Projection(inside, 0.0, float(inside.norm()), 0)
        # ||B - Q Q^T B|| costs as much as Q^T B; signed sums of the columns have the same norm.
        signs = _signs(rhs.shape[1])
        seen, found = (rhs, inside) if signs is None else (rhs @ signs, inside @ signs)
        outside = float((product(seen) - self._q @ found).norm())
        total = math.hypot(float(inside.norm()), outside)
        return Projection(inside, outside, total, (self.rows - self.columns) * rhs.shape[1])

    def coordinates(self, projection: Projection) -> Tensor:
        """B along the left singular vectors of A, (r, P)."""
        u, _, vh = self.svd
        return (vh if self.wide else u.mT) @ projection.inside

    def residuals(self, projection: Projection) -> Tensor:
        """||A X_k - B|| for every number k = 0, ..., r of singular directions kept, (r + 1,)."""
        energy = self.coordinates(projection).square().sum(1)
        dropped = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
        return (dropped + projection.outside**2).sqrt()

    def solve(self, rhs: Tensor | Projection, *, keep: int | None = None) -> Tensor:
        """Returns X (n, P) from the ``keep`` largest singular directions.

        By default all of them, by the triangle alone (those above float64's error where it is
        singular).

        Raises:
            ArgumentError: ``keep`` is outside 1, ..., min(m, n).
        """
        projection = rhs if isinstance(rhs, Projection) else self.project(rhs)
        if keep is None:
            scale = float(self._r.diagonal().abs().max())
            if self.smallest_pivot > scale * EPSILON * max(self.rows, self.columns):
                return self._triangle(projection.inside)
            keep = self.numerical_rank
        if not 1 <= keep <= len(self._r):
            raise ArgumentError(f"1 to {len(self._r)} directions can be kept, found {keep}")
        factors = torch.zeros(len(self._r), dtype=torch.float64)
        factors[:keep] = 1
        return self.filtered(self.coordinates(projection), factors)

    def filtered(self, coordinates: Tensor, factors: Tensor) -> Tensor:
        """Returns sum_i f_i v_i c_i / s_i: X (n, P) with a share of each direction."""
        u, s, vh = self.svd
        weights = torch.where(factors > 0, factors / s, 0.0)
        scaled = weights[:, None] * coordinates
        found: Tensor = self._q @ (u @ scaled) if self.wide else vh.mT @ scaled
        return found

    def _triangle(self, inside: Tensor) -> Tensor:
        if not self.wide:
            tall: Tensor = torch.linalg.solve_triangular(self._r, inside, upper=True)
            return tall
        wide: Tensor = torch.linalg.solve_triangular(self._r.mT, inside, upper=False)
        return self._q @ wide


@lru_cache(maxsize=8)
def _signs(columns: int) -> Tensor | None:
    """Random signs over sqrt(k), (P, k): ||M S||^2 is ||M||^2 on average (Hutchinson).

    Its standard error is sqrt(2 / k) for a matrix of rank one, a quarter, and below 1 % where M
    is noise. None where that would spare nothing.
    """
    if columns <= 8 * SKETCH:
        return None
    bits = torch.randint(0, 2, (columns, SKETCH), generator=generator(0, "signs", columns))
    signs: Tensor = (2.0 * bits.double() - 1.0) / math.sqrt(SKETCH)
    return signs


def shrunk(factor: Factor, projection: Projection, *, noise: float) -> Solution:
    """Solves with every singular direction shrunk by what the noise leaves of it (ours).

    Along direction i the P coordinates c_i of B have energy |c_i|^2 / P = s_i^2 v_i + sigma^2,
    where v_i is the mean square of the unknown along it. So v_i is read off the data, and the best
    linear estimate keeps the share v_i / (v_i + sigma^2 / s_i^2): James and Stein's positive part,
    one direction at a time. Pictures have no more energy along later directions than along earlier
    ones, so v_i is capped by the median of the ten before it; without that, an error of a few
    percent in sigma would let the last directions through.

    Args:
        factor: Of A.
        projection: Of B.
        noise: sigma.
    """
    if noise <= CERTAIN * factor.smallest_pivot:  # may hold; the vectors may not be needed
        x, variance = factor.solve(projection), (noise / factor.singular_values).square()
        if variance[-1] * x.numel() <= (CERTAIN * x.norm()).square():
            return Solution(x, torch.ones_like(variance), variance, variance)
    coordinates = factor.coordinates(projection)
    s = factor.singular_values
    variance = (noise / s).square()
    found = (coordinates.square().mean(1) / s.square() - variance).clamp_min(0).nan_to_num()
    sizes = found.tolist()
    for i in range(1, len(sizes)):
        before = sorted(sizes[max(0, i - WINDOW) : i])
        sizes[i] = min(sizes[i], before[len(before) // 2])
    prior = torch.tensor(sizes, dtype=torch.float64)
    factors = torch.where(prior > 0, prior / (prior + variance), 0.0)
    error = _expected_error(s, prior, factors, variance, drowned=factor.rows * noise**2)
    known = torch.where(factors >= 0.5, torch.minimum(factors * variance, error), 0.0)
    return Solution(factor.filtered(coordinates, factors), factors, error, known)


def ridge(matrix: Tensor | Factor, rhs: Tensor, *, noise: float) -> Tensor:
    """Solves A X = B under a prior that is alike in every direction (Tikhonov, Wiener).

    X minimises ||A X - B||^2 + lambda ||X||^2 with lambda = sigma^2 / v. The mean square v of X
    follows from the energies: E ||B||^2 = v P ||A||^2 + m P sigma^2. Without noise it is the
    minimum-norm solution.

    A matrix is solved by one Cholesky factorisation of A^T A + lambda (or A A^T + lambda, if that
    is smaller), which squares the condition number: only where lambda is well above the rounding
    of that. Elsewhere, and for a factor, by singular vectors, which serve any noise.

    Args:
        matrix: A (m, n), or its factor.
        rhs: B (m, P).
        noise: sigma.

    Returns:
        X (n, P).
    """
    rows, columns = rhs.shape
    known = matrix.singular_values if isinstance(matrix, Factor) else matrix
    scale = float(known.norm()) or 1.0
    size = (float(rhs.norm()) ** 2 - rows * columns * noise**2) / (columns * scale**2)
    # From below lambda keeps singular systems solvable, from above X is not quite dropped.
    root = max(noise / math.sqrt(max(size, 1e-300)), LEAST_RIDGE * scale)
    root = min(root, scale / LEAST_RIDGE)
    if isinstance(matrix, Factor) or root < SQUARABLE * scale:
        factor = matrix if isinstance(matrix, Factor) else Factor(matrix)
        values = factor.singular_values
        shares = values.square() / (values.square() + root**2)
        return factor.filtered(factor.coordinates(factor.project(rhs)), shares)
    tall = len(matrix) >= matrix.shape[1]
    gram = matrix.mT @ matrix if tall else matrix @ matrix.mT
    gram.diagonal().add_(root**2)
    lower, right = torch.linalg.cholesky(gram), matrix.mT @ rhs if tall else rhs
    found = torch.cholesky_solve(right, lower)
    return found if tall else matrix.mT @ found


def choose_rank(factor: Factor, projection: Projection, *, rule: RankRule, noise: float) -> int:
    """Chooses how many singular directions a truncated solve keeps, from the data alone.

    Args:
        factor: Of A.
        projection: Of B.
        rule: ``"energy"`` (ours): up to the last direction whose energy is twice the noise's;
            ``"discrepancy"`` (Morozov): the fewest directions whose residual the noise explains;
            ``"gcv"`` (Golub, Heath and Wahba): generalised cross validation.
        noise: Standard deviation of the noise.

    Returns:
        A number in 1, ..., the numerical rank.
    """
    choose(rule, get_args(RankRule), "rank rule")
    full, columns = factor.numerical_rank, projection.inside.shape[1]
    if rule == "energy":
        energy = factor.coordinates(projection).square().mean(1)[:full]
        return max(1, int((energy > 2 * noise**2).int().cumprod(0).sum()))
    residuals = factor.residuals(projection)[1 : full + 1]
    left = (factor.rows - torch.arange(1, full + 1, dtype=torch.float64)).clamp_min(EPSILON)
    if rule == "gcv":
        return 1 + int((residuals / left).argmin())
    explained = residuals <= 1.01 * noise * (left * columns).sqrt()
    return 1 + int(explained.int().argmax()) if explained.any() else full


def _expected_error(
    values: Tensor, prior: Tensor, factors: Tensor, variance: Tensor, *, drowned: float
) -> Tensor:
    """Expected squared error along each direction, with A itself as noisy as it may be.

    If all noise were A's, its entries would have variance sigma^2 / sum_i v_i, and m times that
    would be added to every s_i^2: a direction is seen only in so far as s_i^2 exceeds it, its
    coordinate is too small by that share, and one that is not seen has the size of those seen last
    (but no more than the mean). That last is a guess: nothing in the data tells it.

    Args:
        values: s_i, (r,).
        prior: v_i, (r,).
        factors: Share of each direction kept, (r,).
        variance: sigma^2 / s_i^2, (r,).
        drowned: m sigma^2.
    """
    added = drowned / prior.sum().clamp_min(1e-300)
    seen = (1 - added / values.square()).clamp_min(0)
    trusted = (seen >= 0.5) & (factors >= 0.5)
    last = prior[trusted][-1] / seen[trusted][-1] if trusted.any() else prior.new_tensor(1.0)
    last = torch.minimum(last, prior.mean()) if trusted.any() else last  # later, hence not larger
    known = (seen >= 0.5) & (factors > 0)
    return torch.where(known, factors * variance + (1 - seen).square() * prior, last)
