import pytest
import torch

from fastgen.models.scores import auroc


def test_auroc_is_the_share_of_pairs_in_order_with_ties_counted_half():
    inliers, outliers = torch.tensor([1.0, 2.0, 3.0, 3.0]), torch.tensor([3.0, 0.5, 9.0])
    pairs = [(o > i) + 0.5 * (o == i) for i in inliers for o in outliers]
    assert auroc(inliers, outliers) == pytest.approx(sum(map(float, pairs)) / 12)
    assert auroc(inliers, inliers) == 0.5
    assert auroc(inliers, inliers + 10) == 1.0 and auroc(inliers, inliers - 10) == 0.0


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([float("nan")])])
def test_bad_scores_say_what_to_do(bad):
    with pytest.raises(ValueError, match="outliers must be .n,. with n >= 1 and without NaN"):
        auroc(torch.zeros(1), bad)
