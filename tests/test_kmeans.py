import warnings

import numpy as np
import pytest
import torch

import fastgen
from fastgen.cluster import KMeans
from fastgen.cluster.seeding import cluster_uniforms, random_rows, spread_rows

nan = float("nan")


def blobs(rows=600, values=8, groups=12, dtype=torch.float32, spread=0.3):
    centers = torch.randn(groups, values).double() * 3
    x = centers[torch.arange(rows) % groups] + torch.randn(rows, values).double() * spread
    return x.to(dtype)


def plain_lloyd(x, centers, iterations):
    """Labels and centres after so many iterations, in float64, where no cluster is ever empty."""
    x, centers = x.double(), centers.double()
    for _ in range(iterations):
        labels = (x.unsqueeze(1) - centers).square().sum(2).argmin(1)
        centers = torch.stack([x[labels == k].mean(0) for k in range(len(centers))])
    return centers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("iterations", [1, 3])
def test_is_lloyds_algorithm(dtype, iterations):
    x = blobs(dtype=dtype, spread=2.0)
    start = x[:9]
    found = KMeans(9, init=start, max_iter=iterations, tol=0).fit(x)
    want = plain_lloyd(x, start, iterations)
    assert found.n_iter_ == iterations and found.cluster_centers_.dtype == dtype
    torch.testing.assert_close(found.cluster_centers_, want.to(dtype))
    distance = (x.double().unsqueeze(1) - want).square().sum(2)
    assert torch.equal(found.labels_, distance.argmin(1))
    assert found.inertia_ == pytest.approx(distance.amin(1).sum().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "rows, values, clusters", [(300, 2, 3), (2000, 16, 40), (500, 1, 7), (5, 3, 5)]
)
def test_same_as_scikit_learn_from_the_same_start(rows, values, clusters, dtype):
    cluster = pytest.importorskip("sklearn.cluster")
    x = torch.randn(rows, values).double().numpy().astype(dtype)
    start = x[:clusters].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = cluster.KMeans(clusters, init=start, n_init=1, algorithm="lloyd").fit(x)
    ours = KMeans(clusters, init=start).fit(x)
    assert type(ours.labels_) is np.ndarray and ours.cluster_centers_.dtype == dtype
    assert ours.inertia_ == pytest.approx(
        theirs.inertia_, rel=1e-4 if dtype == np.float32 else 1e-9
    )
    assert ours.n_iter_ == theirs.n_iter_
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), rtol=1e-3, atol=1e-3)
    assert ours.score(x) == pytest.approx(theirs.score(x), rel=1e-4)


def test_empty_clusters_restart_at_the_farthest_rows():
    cluster = pytest.importorskip("sklearn.cluster")
    x = torch.cat([torch.randn(50, 2) * 0.1, torch.tensor([[9.0, 9.0], [-7.0, 7.0]])]).numpy()
    start = np.array([[0, 0], [100, 100], [200, 200]], dtype=np.float32)
    theirs = cluster.KMeans(3, init=start, n_init=1).fit(x)
    ours = KMeans(3, init=start).fit(x)
    assert len(set(ours.labels_)) == 3
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-4)


def test_fewer_different_rows_than_clusters():
    x = torch.tensor([[0.0, 1], [2, 3]]).repeat(10, 1)
    for init in ("k-means++", "random"):
        with pytest.warns(UserWarning, match="n_clusters=5 have rows"):
            found = KMeans(5, init=init, random_state=0).fit(x)
        assert found.inertia_ == 0 and found.cluster_centers_.isfinite().all()
        assert torch.equal(found.cluster_centers_[found.labels_], x)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_finds_groups_that_lie_apart(init):
    x = blobs(spread=0.05)
    found = KMeans(12, init=init, n_init=10, random_state=0).fit(x)
    want = (
        x.double()
        - torch.stack([x[g::12].double().mean(0) for g in range(12)])[torch.arange(len(x)) % 12]
    )
    assert found.inertia_ == pytest.approx(want.square().sum().item(), rel=1e-4)
    assert torch.equal(found.labels_.reshape(-1, 12), found.labels_[:12].expand(50, 12))


def test_more_starts_are_never_worse():
    x = blobs(spread=1.0)
    inertia = [
        KMeans(12, init="random", n_init=n, random_state=3).fit(x).inertia_ for n in (1, 4, 8)
    ]
    assert inertia == sorted(inertia, reverse=True)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_same_bits_for_any_thread_count(init):
    x = blobs(5000, 33, 40, spread=2.0)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found = KMeans(40, init=init, random_state=7, n_init=2).fit(x)
        results.append((found.cluster_centers_, found.labels_, found.inertia_, found.n_iter_))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0]) and torch.equal(other[1], results[0][1])
        assert other[2:] == results[0][2:]


def test_the_seed_decides():
    x = blobs(spread=2.0)

    def centers(**options):
        return KMeans(12, max_iter=1, **options).fit(x).cluster_centers_

    assert torch.equal(centers(random_state=5), centers(random_state=5))
    assert not torch.equal(centers(random_state=5), centers(random_state=6))
    torch.manual_seed(1)
    first, second = centers(), centers()
    torch.manual_seed(1)
    assert torch.equal(first, centers()) and not torch.equal(first, second)


def test_strided_and_read_only_arrays():
    x = blobs().double().numpy()
    want = KMeans(5, random_state=0).fit(x)
    frozen = np.asfortranarray(x)
    frozen.setflags(write=False)
    for same in (frozen, np.repeat(x, 2, axis=1)[:, ::2], x[::-1].copy()[::-1], x.tolist()):
        found = KMeans(5, random_state=0).fit(same)
        np.testing.assert_array_equal(found.labels_, want.labels_)
        assert found.inertia_ == pytest.approx(want.inertia_)
    tensor = torch.from_numpy(x).t().contiguous().t().requires_grad_()
    found = KMeans(5, random_state=0).fit(tensor)
    assert (
        found.inertia_ == pytest.approx(want.inertia_) and not found.cluster_centers_.requires_grad
    )


def test_an_offset_costs_nothing():
    x = blobs(spread=1.0)
    near = KMeans(12, init=x[:12]).fit(x)
    far = KMeans(12, init=x[:12] + 1000).fit(x + 1000)
    assert (near.labels_ == far.labels_).float().mean() > 0.99
    assert far.inertia_ == pytest.approx(near.inertia_, rel=1e-3)


def test_fit_predict_is_fit_then_labels():
    x = blobs()
    model = KMeans(4, random_state=0)
    assert torch.equal(model.fit_predict(x), model.labels_)
    assert torch.equal(model.predict(x), model.labels_)
    assert model.score(x) == pytest.approx(-model.inertia_)
    assert fastgen.cluster.KMeans is KMeans


def test_fit_transform_is_fit_then_transform():
    x = blobs()
    model = KMeans(4, random_state=0)
    assert torch.equal(model.fit_transform(x), model.transform(x)) and model.n_features_in_ == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_other_data_may_be_of_the_other_dtype(dtype):
    x = blobs(dtype=dtype)
    other = x.double() if dtype == torch.float32 else x.float()
    model = KMeans(4, random_state=0).fit(x)
    want = (other.double().unsqueeze(1) - model.cluster_centers_.double()).norm(dim=2)
    assert model.transform(other).dtype == torch.float64
    torch.testing.assert_close(model.transform(other), want)
    torch.testing.assert_close(model.transform(other.numpy()), want.numpy())
    assert torch.equal(model.predict(other), want.argmin(1))
    assert model.score(other) == pytest.approx(-want.amin(1).square().sum().item(), rel=1e-6)


def test_given_centres_that_require_grad_leave_no_graph():
    x = blobs()
    model = KMeans(4, init=x[:4].clone().requires_grad_()).fit(x)
    assert not model.cluster_centers_.requires_grad
    assert torch.equal(model.labels_, KMeans(4, init=x[:4]).fit(x).labels_)


def test_numbers_of_numpy_are_numbers():
    x = blobs()
    model = KMeans(np.int64(4), n_init=np.int32(2), random_state=np.uint64(2**63 + 1)).fit(x)
    same = KMeans(4, n_init=2, random_state=2**63 + 1).fit(x)
    assert torch.equal(model.labels_, same.labels_)


def test_parameters_are_read_and_set_by_name():
    model = KMeans(4, tol=0.5, random_state=3)
    options = dict(n_clusters=4, init="k-means++", n_init=1, max_iter=300, tol=0.5, random_state=3)
    assert model.get_params() == options
    assert model.set_params(n_clusters=7, init="random") is model
    assert model.get_params() == options | dict(n_clusters=7, init="random")
    with pytest.raises(ValueError, match="set_params must get some of n_clusters, .* got clusters"):
        model.set_params(n_init=2, clusters=7)
    with pytest.raises(ValueError, match="max_iter must be a positive int"):
        model.set_params(n_init=2, max_iter=0)
    assert model.n_init == 1


def test_repr_is_the_call_that_makes_the_model():
    assert repr(KMeans()) == "KMeans(n_clusters=8)"
    model = KMeans(np.int64(4), init="random", tol=0.0, random_state=0)
    assert repr(model) == "KMeans(n_clusters=4, init='random', tol=0.0, random_state=0)"
    assert repr(KMeans(2, init=torch.zeros(2, 3))) == "KMeans(n_clusters=2, init=<Tensor (2, 3)>)"


def test_scikit_learn_clones_it():
    base = pytest.importorskip("sklearn.base")
    x = blobs().numpy()
    for init in ("random", x[:4]):
        model = KMeans(np.int64(4), init=init, random_state=3).fit(x)
        twin = base.clone(model)
        assert not hasattr(twin, "labels_")
        np.testing.assert_array_equal(twin.fit(x).labels_, model.labels_)


def test_uniforms_are_the_documented_stream():
    from fastgen.cluster.seeding import CLUSTER_STREAM
    from fastgen.reference.philox import philox4x32

    seed, run = 2**40 + 3, 2
    got = cluster_uniforms(seed, run, 3)
    block = philox4x32(torch.tensor([1, run, 0, CLUSTER_STREAM << 16]), seed)
    bits = (int(block[0]) >> 5) << 26 | int(block[1]) >> 6
    assert got[1].item() == bits / 2**53 and 0 <= got.min() and got.max() < 1
    assert torch.equal(cluster_uniforms(seed, run, 2), got[:2])


def test_random_rows_are_different_and_equally_likely():
    counts = torch.zeros(6)
    for run in range(3000):
        rows = random_rows(6, 4, 0, run)
        assert len(rows.unique()) == 4
        counts[rows] += 1
    assert ((counts / 3000 - 4 / 6).abs() < 0.04).all()
    assert sorted(random_rows(5, 5, 0, 0).tolist()) == [0, 1, 2, 3, 4]


def test_spread_rows_are_drawn_by_squared_distance():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    second = torch.zeros(3)
    firsts = torch.zeros(3)
    for run in range(3000):
        rows = spread_rows(x, 2, 1, run).tolist()
        firsts[rows[0]] += 1
        second[rows[1]] += rows[0] == 0
    assert ((firsts / 3000 - 1 / 3).abs() < 0.04).all()
    torch.testing.assert_close(
        second / second.sum(), torch.tensor([0.0, 0.1, 0.9]), atol=0.03, rtol=0
    )


x = torch.zeros(6, 2)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"n_clusters": 0}, ValueError, "n_clusters must be a positive int, got 0"),
        ({"n_clusters": 2.0}, ValueError, "n_clusters must be a positive int, got 2.0"),
        ({"n_init": 0}, ValueError, "n_init must be a positive int, got 0"),
        ({"max_iter": True}, ValueError, "max_iter must be a positive int, got True"),
        ({"tol": -1.0}, ValueError, "tol must not be negative, got -1.0"),
        ({"tol": nan}, ValueError, "tol must not be negative, got nan"),
        ({"init": "best"}, ValueError, "init must be 'k-means[+][+]', 'random' or .* got 'best'"),
        ({"n_clusters": True}, ValueError, "n_clusters must be a positive int, got True"),
        ({"random_state": True}, ValueError, "random_state must be None or an int .* got True"),
        ({"random_state": 1.0}, ValueError, "random_state must be None or an int .* got 1.0"),
        ({"random_state": -1}, ValueError, "random_state must be None or an int"),
        ({"init": x[:3]}, ValueError, r"init must be \(2, 2\), got \(3, 2\)"),
        ({"init": x[:2] / 0}, ValueError, "init must be finite"),
        ({"n_clusters": 7}, ValueError, "X must have at least n_clusters=7 rows, got 6"),
        ({"X": x.half()}, TypeError, "X must be float32 or float64, got torch.float16"),
        ({"X": x.long().numpy()}, TypeError, "X must be float32 or float64, got torch.int64"),
        ({"X": x[0]}, ValueError, r"X must be \(N, D\), got shape \(2,\)"),
        ({"X": x / 0}, ValueError, "X must be finite, got NaN or infinity"),
    ],
)
def test_bad_arguments_are_named(options, error, words):
    options = {"n_clusters": 2} | options
    data = options.pop("X", x)
    with pytest.raises(error, match=words) as caught:
        KMeans(**options).fit(data)
    assert "fastgen.KMeans: " in str(caught.value)


def test_use_before_fit_and_other_features_are_named():
    with pytest.raises(ValueError, match="call fit first"):
        KMeans(2).predict(x)
    model = KMeans(1).fit(x)
    with pytest.raises(ValueError, match="X must have at least one row to score, got 0"):
        model.score(x[:0])
    with pytest.raises(ValueError, match="the 2 features of fit, got 3"):
        model.predict(torch.zeros(4, 3))
