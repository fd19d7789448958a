import math

import pytest
import torch

from fastgen import data
from fastgen.data import rings
from fastgen.models.scores import auroc, diversity, mode_coverage, nearest_distances, spread


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


def test_a_mode_is_covered_by_one_percent_of_the_points_within_three_sigma():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = torch.full((200, 2), 50.0)
    points[:2] = 0.0  # 1 %
    points[2] = centres[1]  # half of it
    points[3:5] = torch.tensor([0.0, 13.0])  # just within 3 sigma
    points[5:9] = torch.tensor([0.0, -3.001])  # just beyond
    points[9] = float("nan")
    assert mode_coverage(points, centres, 1.0) == (2, 5 / 200)
    assert mode_coverage(centres, centres, 0.1) == (3, 1.0)
    assert mode_coverage(torch.full((3, 2), 5.0), centres, 0.1).modes == 0


def test_the_data_themselves_cover_every_ring():
    train = data.load("rings").train.images
    assert mode_coverage(rings.places(train), rings.centres(), rings.SIGMA).modes == 8
    share = mode_coverage(rings.places(train), rings.centres(), rings.SIGMA).share
    assert share == pytest.approx(1 - math.exp(-4.5), abs=0.005)  # of a Gaussian of the plane


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
def test_nearest_distances_are_those_of_the_whole_matrix(dtype):
    samples, images = (torch.randint(0, 17, (n, 1, 3, 5)).to(dtype) for n in (23, 31))
    samples[4] = images[8]
    nearest = nearest_distances(samples, images)
    matrix = torch.cdist(samples.flatten(1).double(), images.flatten(1).double())
    torch.testing.assert_close(nearest.distance, matrix.min(1).values, rtol=1e-6, atol=0)
    assert nearest.distance[4] == 0 and nearest.index[4] == 8


def test_diversity_of_the_data_of_a_collapse_and_of_copies():
    train, test, fresh = (torch.randn(n, 1, 4, 4) for n in (300, 80, 80))
    same = diversity(test, train, test)
    assert same == (1.0, 0.5)
    drawn = diversity(fresh, train, test)
    assert 0.9 < drawn.spread < 1.1 and 0.3 < drawn.nearness < 0.7
    collapsed = diversity(train[:1].repeat(80, 1, 1, 1), train, test)
    assert collapsed == (0.0, 1.0)
    assert diversity(train[:80], train, test).nearness == 1.0
    assert diversity(100 * fresh, train, test).nearness == 0.0


def test_diversity_by_hand():
    line = [torch.tensor(x)[:, None] for x in ([0.0, 1.0, 4.0, 9.0], [0.0, 2.0, 8.0, 18.0])]
    samples, test = line  # to the nearest other: 1, 1, 3, 5 and 2, 2, 6, 10
    assert diversity(samples, torch.tensor([[0.0]]), test) == (10 / 20, (3.5 + 3 + 2 + 1) / 16)


def test_spread_is_of_the_whole_matrix_in_any_order():
    samples, images = torch.randn(600, 3) + 1e4, torch.randn(700, 3)

    def apart(x):
        return torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf).min(1).values.mean()

    expected = apart(samples - 1e4) / apart(images[:600])
    assert spread(samples, images) == pytest.approx(expected.item(), rel=1e-6)
    order = torch.randperm(600)
    assert spread(samples[order], images[:600]) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: mode_coverage(x[0], x, 1.0), r"points must be \(N, D\) and centres"),
        (lambda x: mode_coverage(x[:0], x, 1.0), "give at least one point"),
        (lambda x: nearest_distances(x, x[:0]), r"images must be \(M, 3\) with M >= 1, got \(0, 3"),
        (lambda x: nearest_distances(x, x[:, :2]), r"got \(5, 2\); compare images of one shape"),
        (lambda x: diversity(x[:1], x, x), "at least 2 each, got 1 and 5"),
    ],
)
def test_what_cannot_be_scored_is_told(call, message):
    with pytest.raises(ValueError, match=rf"fastgen\.models\.scores\.\w+: .*{message}"):
        call(torch.randn(5, 3))
