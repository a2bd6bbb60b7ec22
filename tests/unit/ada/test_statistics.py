"""Ranks: equal values share theirs."""

import pytest
import torch
from scipy.stats import spearmanr

from ada.statistics import rank_correlation


def test_rank_correlation_is_spearmans_with_ties() -> None:
    values, others = torch.tensor([0.2, 0.2, 0.1, 0.4, 0.3, 0.2]), torch.tensor([1.0, 3.0, 3.0, 5.0, 4.0, 2.0])
    assert rank_correlation(values, others) == pytest.approx(spearmanr(values, others).statistic)
    assert rank_correlation(values, -values) == pytest.approx(-1.0)


def test_what_is_the_same_everywhere_correlates_with_nothing() -> None:
    constant = torch.full((4,), 0.3, dtype=torch.float64)
    constant[1] += 1e-13
    assert rank_correlation(constant, torch.arange(4.0)) is None
    assert rank_correlation(torch.arange(4.0), constant) is None
