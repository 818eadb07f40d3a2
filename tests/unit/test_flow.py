import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfmodel.config import SampleConfig
from cfmodel.flow import (
    FewStep,
    add_noise,
    euler_sigmas,
    euler_step,
    per_frame,
    shift_sigma,
    v_from_x0,
    x0_from_v,
)
from tests.helpers.nano import seeded

LEVELS = st.floats(0, 1)
SHIFTS = st.floats(0.1, 20)


def test_paper_schedule():
    sigmas = FewStep.from_config(SampleConfig()).sigmas
    assert sigmas == pytest.approx((1, 0.9375, 0.83333333, 0.625))


@given(LEVELS, SHIFTS)
def test_shift_keeps_the_interval_and_is_undone_by_its_inverse(sigma, shift):
    warped = shift_sigma(sigma, shift)
    assert 0 <= warped <= 1 + 1e-9
    assert shift_sigma(warped, 1 / shift) == pytest.approx(sigma, abs=1e-9)
    assert (warped >= sigma - 1e-9) if shift >= 1 else (warped <= sigma + 1e-9)


def test_shift_refuses_zero():
    with pytest.raises(ValueError, match="shift=0"):
        shift_sigma(0.5, 0)


def test_flow_algebra():
    x0, eps = seeded(2, 3, 4, 2, 2, seed=1), seeded(2, 3, 4, 2, 2, seed=2)
    sigma = per_frame(torch.rand(2, 3, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.1)
    xt = add_noise(x0, eps, sigma)
    torch.testing.assert_close(x0_from_v(xt, eps - x0, sigma), x0)
    torch.testing.assert_close(v_from_x0(xt, x0, sigma), eps - x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(add_noise(x0, eps, 1.0), eps)
    torch.testing.assert_close(add_noise(x0, eps, 0.0), x0)


def test_euler_reaches_the_clean_latent_along_a_straight_flow():
    x0, eps = seeded(4, seed=1), seeded(4, seed=2)
    sigmas = euler_sigmas(7, 3.0)
    assert (sigmas[0], sigmas[-1], len(sigmas)) == (1.0, 0.0, 8)
    assert list(sigmas) == sorted(sigmas, reverse=True)
    x = eps
    for sigma, following in itertools.pairwise(sigmas):
        x = euler_step(x, eps - x0, sigma, following)
    torch.testing.assert_close(x, x0)


def test_euler_needs_a_step():
    with pytest.raises(ValueError, match="steps=0"):
        euler_sigmas(0, 1.0)
