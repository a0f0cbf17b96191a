"""exp and log1p of the vector vocabulary keep the bounds that vec.hpp states, in every range and at its edges."""

import mpmath
import numpy as np
import pytest

from softxent import _dispatch

# Largest error in ulp, as vec.hpp states it.
EXP_BOUNDS = {"float32": 1.02, "float64": 1.1}
LOG1P_BOUND = 1.0
# How far below the row's largest logit an exponential still counts, in either dtype, with room to spare.
REACH = {"float32": 115.0, "float64": 790.0}
MAXIMA = [0.0, -1.5, 0.3, 20.0, 88.0, -200.0, 300.0, 511.9]


@pytest.fixture(scope="module", params=_dispatch.usable_levels())
def kernels(request: pytest.FixtureRequest) -> _dispatch.Kernels:
    return _dispatch.load(request.param)


def exp(kernels: _dispatch.Kernels, x: np.ndarray, maximum: float) -> tuple[np.ndarray, float]:
    out = np.empty_like(x)
    return out, kernels.exp_of(x, maximum, out)


def log1p(kernels: _dispatch.Kernels, u: np.ndarray) -> np.ndarray:
    out = np.empty_like(u)
    kernels.log1p_of(u, out)
    return out


def largest_error(results: np.ndarray, truths: list[mpmath.mpf]) -> float:
    """In ulp of the results."""
    with mpmath.workdps(50):
        return max(
            float(abs(truth - mpmath.mpf(float(result))) / mpmath.mpf(float(np.spacing(result))))
            for result, truth in zip(results, truths, strict=True)
        )


def unit_of(maximum: float, dtype: str) -> mpmath.mpf:
    """What the exponentials of a row with this maximum are multiplied by, as vec.hpp states it."""
    headroom = {"float32": 40, "float64": 128}[dtype]
    return mpmath.mpf(2) ** (headroom - int(np.rint(maximum / np.log(2))))


@pytest.mark.parametrize("dtype", EXP_BOUNDS)
@pytest.mark.parametrize("maximum", MAXIMA)
def test_exp_against_50_digits(kernels: _dispatch.Kernels, maximum: float, dtype: str) -> None:
    rng = np.random.default_rng(0)
    maximum = float(np.array(maximum, dtype))
    x = (maximum - rng.random(1500) ** 2 * REACH[dtype]).astype(dtype)
    results, _ = exp(kernels, x[x <= maximum], maximum)
    with mpmath.workdps(50):
        unit = unit_of(maximum, dtype)
        truths = [mpmath.exp(mpmath.mpf(float(value))) * unit for value in x[x <= maximum]]
    assert largest_error(results, truths) <= EXP_BOUNDS[dtype]


def check_exp_of_floats(kernels: _dispatch.Kernels, step: int) -> None:
    """Every step-th float32 from -0 down to where results leave the normal numbers, against double."""
    last = int(np.float32(REACH["float32"]).view(np.uint32))
    for start in range(0, last, step << 20):
        bits = np.arange(start, min(start + (step << 20), last + 1), step, dtype=np.uint32)
        x = (bits | np.uint32(1 << 31)).view(np.float32)
        results, one = exp(kernels, x, 0.0)
        truths = np.exp(x.astype(np.float64)) * one
        errors = np.abs(results - truths) / np.spacing(truths.astype(np.float32))
        assert errors.max() <= EXP_BOUNDS["float32"]


def test_exp_of_floats(kernels: _dispatch.Kernels) -> None:
    check_exp_of_floats(kernels, 997)


@pytest.mark.exhaustive
def test_exp_of_all_floats(kernels: _dispatch.Kernels) -> None:
    check_exp_of_floats(kernels, 1)


def check_against_long_double(kernels: _dispatch.Kernels, n_points: int) -> None:
    """exp and log1p in float64; the reference adds its own rounding, 2**-11 ulp or less."""
    rng = np.random.default_rng(0)
    while n_points > 0:
        x = -rng.random(500_000) * REACH["float64"]
        results, one = exp(kernels, x, 0.0)
        truths = np.exp(x.astype(np.longdouble)) * one
        assert np.max(np.abs(results - truths) / np.spacing(results)) <= EXP_BOUNDS["float64"]
        u = np.concatenate([np.exp(rng.uniform(-745, 50, 250_000)), rng.random(250_000) * 4])
        truths = np.log1p(u.astype(np.longdouble))
        assert np.max(np.abs(log1p(kernels, u) - truths) / np.spacing(truths.astype(np.float64))) <= LOG1P_BOUND
        n_points -= u.size


long_double = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no longer than double here")


@long_double
def test_doubles_against_long_double(kernels: _dispatch.Kernels) -> None:
    check_against_long_double(kernels, 500_000)


@long_double
@pytest.mark.exhaustive
def test_ten_million_doubles_against_long_double(kernels: _dispatch.Kernels) -> None:
    check_against_long_double(kernels, 10_000_000)


def test_log1p_against_50_digits(kernels: _dispatch.Kernels) -> None:
    rng = np.random.default_rng(0)
    u = np.concatenate([np.exp(rng.uniform(-745, 50, 1000)), rng.random(1000) * 4, [5e-324, 2**-53, 0.41, 0.42, 1, 3]])
    with mpmath.workdps(400):  # the reference forms 1 + u
        truths = [mpmath.log1p(mpmath.mpf(float(value))) for value in u]
        assert largest_error(log1p(kernels, u), truths) <= LOG1P_BOUND


@pytest.mark.parametrize("dtype", EXP_BOUNDS)
def test_edges_of_exp(kernels: _dispatch.Kernels, dtype: str) -> None:
    big = np.finfo(dtype).max
    results, one = exp(kernels, np.array([0, -0.0, -big, -np.inf, -1e4, np.nan], dtype), 0.0)
    np.testing.assert_array_equal(results, np.array([one, one, 0, 0, 0, np.nan]))
    assert one == 2.0 ** {"float32": 40, "float64": 128}[dtype]
    for infinite in (np.inf, -np.inf):
        assert np.isnan(exp(kernels, np.array([infinite], dtype), infinite)[0]).all()


def test_edges_of_log1p(kernels: _dispatch.Kernels) -> None:
    tiny = [0, 5e-324, 1e-310, 1e-300, 2**-54]
    np.testing.assert_array_equal(log1p(kernels, np.array([*tiny, np.nan])), [*tiny, np.nan])
