import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import CASES
from zoo.colours import ColourConv, interleaved, thirds
from zoo.masked import InPlaceBuffer, Plain
from zoo.orders import column_major
from zoo.sequences import CausalConv

from fastgen import compile_sampler
from fastgen.likelihoods import Categorical
from fastgen.sampling.causality import check_causal, not_causal_error, violations
from fastgen.sampling.dependencies import Dependencies
from fastgen.sampling.errors import NotCausalError, UnsupportedModelError
from fastgen.sampling.graph import Graph, Traced
from fastgen.sampling.perturbation import Probe
from fastgen.sampling.trace import trace

SHAPE = (1, 6, 7)
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")


def raster(shape):
    return torch.arange(shape[-1] * shape[-2]).view(1, -1).expand(shape[0], -1)


def check(fn, shape=SHAPE, levels=6, **kwargs):
    return check_causal(fn, shape, levels=levels, **kwargs)


def pairs(report):
    return [(v.output, v.input) for v in report.violations]


# planted bugs


class Stack(nn.Module):
    """An A layer and two B layers, one of them changed by `plant`."""

    def __init__(self, plant, levels=6, channels=6):
        super().__init__()
        self.layers = nn.Sequential(
            InPlaceBuffer("A", 1, channels, 3, padding=1),
            nn.ReLU(),
            InPlaceBuffer("B", channels, channels, 3, padding=1),
            nn.ReLU(),
            InPlaceBuffer("B", channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, levels, 1),
        )
        plant(self.layers)
        self.eval()

    def forward(self, codes):
        return self.layers(codes.float())[:, :, None]


def type_b_first(layers):
    layers[0].mask[:, :, 1, 1] = 1


def wrong_row(layers):
    """Clears the right of the row below instead of the rows below."""
    mask = layers[2].mask
    mask.fill_(1)
    mask[:, :, 1, 2:] = 0
    mask[:, :, 2, 2:] = 0


class FiniteFill(nn.Module):
    """Strict attention; the first row, all filled, becomes a mean over all positions."""

    def __init__(self, fill, levels=6, width=6):
        super().__init__()
        self.fill, self.levels = fill, levels
        self.query = nn.Parameter(torch.randn(SHAPE[1] * SHAPE[2], width))
        self.key_value = nn.Linear(levels, 2 * width)
        self.out = nn.Linear(width, levels)
        self.eval()

    def forward(self, codes):
        x = F.one_hot(codes.flatten(1), self.levels).float()
        k, v = self.key_value(x).chunk(2, -1)
        mask = torch.ones(x.shape[1], x.shape[1]).tril(-1)
        weights = (self.query @ k.mT).masked_fill(mask == 0, self.fill).softmax(-1)
        return self.out(weights @ v).mT.reshape(len(x), self.levels, *codes.shape[1:])


class OddGroups(nn.Module):
    """The gate halves shift the colour groups: channel 5 of 10 is colour 2, not 0."""

    def __init__(self, channels, levels=4):
        super().__init__()
        self.a = ColourConv("A", interleaved, 3, channels, 3)
        self.gate = ColourConv("B", interleaved, channels, 2 * channels, 3)
        self.head = ColourConv("B", interleaved, channels, 3 * levels, 1)
        self.eval()

    def forward(self, codes):
        a, b = self.gate(self.a(codes.float())).chunk(2, 1)
        y = self.head(torch.tanh(a) * torch.sigmoid(b))
        return y.unflatten(1, (-1, 3))


class Cropped(nn.Module):
    """A vertical and a horizontal convolution by padding and cropping; `crop` rows too few."""

    def __init__(self, forgotten, levels=6):
        super().__init__()
        self.forgotten = forgotten
        self.above = nn.Conv2d(1, 6, (2, 3))
        self.left = nn.Conv2d(1, 6, (1, 2))
        self.head = nn.Conv2d(6, levels, 1)
        self.eval()

    def forward(self, codes):
        x = codes.float()
        above = self.above(F.pad(x, (1, 1, 2, 0)))
        above = above[:, :, 1:] if self.forgotten else above[:, :, :-1]
        left = self.left(F.pad(x, (2, 0)))[..., :-1]
        return self.head(F.elu(above + left))[:, :, None]


class Pooled(Stack):
    """Squeeze and excite: every channel times a function of its mean over the image."""

    def __init__(self):
        super().__init__(lambda layers: None)
        self.squeeze = nn.Linear(6, 6).eval()

    def forward(self, codes):
        x = self.layers[:4](codes.float())
        scale = torch.sigmoid(self.squeeze(x.mean((2, 3))))
        return self.layers[4:](x * scale[:, :, None, None])[:, :, None]


class Upsampled(nn.Module):
    """Half resolution of the rows above, doubled; `late` rows too early."""

    def __init__(self, early, levels=4, channels=5):
        super().__init__()
        self.early = early
        self.down = nn.Conv2d(1, channels, (2, 3), stride=2)
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.head = nn.Conv2d(channels, levels, 1)
        self.eval()

    def forward(self, codes):
        x = F.pad(codes.float(), (0, 0, 1 - self.early, 0))[:, :, : codes.shape[2]]
        y = self.up(F.relu(self.down(F.pad(x, (1, 1, 1, 0)))))
        y = y[..., : codes.shape[2], : codes.shape[3]]
        return self.head(y)[:, :, None]


def test_a_type_b_first_layer_is_found():
    report = check(Stack(type_b_first))
    assert not report.causal
    assert report.evidence == "proof"
    first = report.violations[0]
    assert first.output == first.input == ((0, 0), 0)
    assert [name.split()[0] for name in first.path] == [f"layers.{i}" for i in (0, 2, 4, 6)]
    assert all(v.output == v.input for v in report.violations)
    assert len(report.violations) == 42


def test_a_mask_that_clears_the_wrong_row_is_found():
    report = check(Stack(wrong_row))
    assert report.violations[0].output.position == (0, 0)
    assert any("layers.2" in name for name in report.violations[0].path)
    assert ((0, 1), 0) in {v.output for v in report.violations if v.input == ((1, 0), 0)}
    assert "not causal" in str(report)


@pytest.mark.parametrize("fill", [-1e4, -1e10])
def test_a_finite_fill_of_a_strict_mask_is_found(fill):
    report = check(FiniteFill(fill))
    wrong = {v.output.position for v in report.violations}
    assert wrong == {(0, 0)}
    assert len(report.violations) == 42  # the mean over all positions, its own among them


def test_colour_groups_of_a_channel_count_that_3_does_not_divide_are_found():
    shape = (3, 4, 5)
    assert check(OddGroups(6), shape, 4, order="subpixel").causal
    report = check(OddGroups(5), shape, 4, order="subpixel")
    assert {v.output.position == v.input.position for v in report.violations} == {True}
    assert {(v.output.channel, v.input.channel) for v in report.violations} == {
        (0, 0), (0, 1), (1, 1)
    }  # fmt: skip
    assert report.suggestion == ""


def test_a_crop_of_the_wrong_end_is_found():
    assert check(Cropped(False)).causal
    report = check(Cropped(True))
    first = report.violations[0]
    assert first.output.position == (0, 0)
    assert first.input.position == (0, 0)
    assert any("above" in name for name in first.path)


def test_an_order_that_is_not_the_models_is_found_and_the_right_one_named():
    ranks = column_major(*SHAPE[1:])

    class Turned(Plain):
        def forward(self, codes):
            return super().forward(codes.transpose(2, 3)).transpose(3, 4)

    model = Turned(InPlaceBuffer).eval()
    assert check(model, order=ranks).causal
    report = check(model)
    assert report.violations[0].input.position == (1, 0)
    assert "order=torch.arange(42).view(7, 6).T" in report.suggestion
    assert torch.equal(eval("torch.arange(42).view(7, 6).T"), ranks)


def test_a_mean_over_the_image_is_found():
    report = check(Pooled())
    assert len({v.output for v in report.violations}) == 41  # the first layer drops the last code
    assert any("mean" in name for name in report.violations[-1].path)


def test_an_upsampling_that_comes_a_row_early_is_found():
    shape = (1, 6, 6)
    assert check(Upsampled(0), shape, 4).causal
    report = check(Upsampled(1), shape, 4)
    first = report.violations[0]
    assert first.output.position[0] >= first.input.position[0] - 1
    assert any("up " in name for name in first.path)


@pytest.mark.parametrize(
    "build, shape, levels, order",
    [
        (lambda: Stack(type_b_first), SHAPE, 6, "raster"),
        (lambda: Stack(wrong_row), SHAPE, 6, "raster"),
        (lambda: FiniteFill(-1e4), SHAPE, 6, "raster"),
        (lambda: OddGroups(5), (3, 4, 5), 4, "subpixel"),
        (lambda: Cropped(True), SHAPE, 6, "raster"),
        (lambda: Stack(lambda layers: None), SHAPE, 6, column_major(*SHAPE[1:])),
        (Pooled, SHAPE, 6, "raster"),
        (lambda: Upsampled(1), (1, 6, 6), 4, "raster"),
    ],
)
def test_compile_sampler_refuses_all_of_them(build, shape, levels, order):
    with pytest.raises(NotCausalError, match=r"at \(.*depends.* drawn .* by .* -> .*pairs\); "):
        compile_sampler(build(), shape, Categorical(levels), order=order)


# the answers in general


@pytest.mark.parametrize("case", CASES, ids=str)
def test_proof_and_perturbation_agree(case):
    fn, condition = case.model(), case.conditions(1)
    report = check_causal(
        fn,
        case.shape,
        order=case.order,
        condition=condition,
        params=case.params,
        levels=case.likelihood.levels,
    )
    assert report.evidence == "proof", report.reason
    assert report.causal, str(report)
    call = Probe(fn, case.shape, condition, case.params)
    with torch.no_grad():
        seen = call.perturbed(case.likelihood.levels).reshape(report.sees.shape)
    assert not (seen & ~report.sees).any()
    # what is proved to be connected moves nearly always, at random weights
    assert seen.sum() >= 0.8 * report.sees.sum()


def test_a_colour_that_sees_its_pixels_colours_is_told_of_the_subpixel_order():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = ColourConv("A", thirds, 3, 6, 3)
            self.head = ColourConv("B", thirds, 6, 12, 1)

        def forward(self, codes):
            return self.head(self.first(codes.float())).unflatten(1, (3, 4)).transpose(1, 2)

    fn, shape = Net().eval(), (3, 4, 4)
    assert check(fn, shape, 4, order="subpixel").causal
    report = check(fn, shape, 4)
    assert 'order="subpixel"' in report.suggestion
    traced = trace(fn, shape, raster(shape), levels=4)
    assert violations(traced)
    error = not_causal_error(traced, shape, "raster")
    assert isinstance(error, NotCausalError)
    assert 'order="subpixel"' in str(error)
    flipped = check(lambda codes: fn(codes.flip(1)).flip(2), shape, 4, order="subpixel")
    assert "flip the colours" in flipped.suggestion


def test_the_error_names_output_input_and_way():
    fn = Stack(wrong_row)
    traced = trace(fn, SHAPE, raster(SHAPE), levels=6)
    assert violations(traced)
    text = str(not_causal_error(traced, SHAPE, "raster"))
    for part in ("(0, 0), channel 0", "layers.2", "in the same step", "masks"):
        assert part in text
    traced = trace(Stack(lambda layers: None), SHAPE, raster(SHAPE), levels=6)
    assert not violations(traced)


def test_the_blind_spot_of_a_plain_pixelcnn_is_found():
    class Skewed(nn.Module):
        """Each position sees the one to its left and the three above."""

        def __init__(self, layers):
            super().__init__()
            kinds = ["A"] + ["B"] * layers
            self.layers = nn.ModuleList(InPlaceBuffer(kind, 1, 1, 3, padding=1) for kind in kinds)

        def forward(self, codes):
            x = codes.float()
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x.expand(-1, 4, -1, -1)[:, :, None]

    torch.manual_seed(1)
    shape = (1, 7, 9)
    report = check(Skewed(2).eval(), shape, 4)
    of_centre = {b.input.position for b in report.blind_spots if b.output.position == (5, 4)}
    # right of the cone that widens by one column a row
    assert of_centre == {(4, 6), (4, 7), (3, 7)}
    assert report.causal
    assert "blind spots" in str(report)
    assert check(Skewed(0).eval(), shape, 4).blind_spots[:] == []


def test_colours_that_never_see_each_other_are_blind():
    conv = nn.Conv2d(3, 12, (1, 2))
    report = check(
        lambda codes: conv(F.pad(codes.float(), (2, 0)))[..., :-1].unflatten(1, (4, 3)),
        (3, 3, 4),
        4,
        order="subpixel",
    )
    own = {
        (b.output.channel, b.input.channel)
        for b in report.blind_spots
        if b.output.position == b.input.position == (1, 1)
    }
    assert own == {(1, 0), (2, 0), (2, 1)}


def test_sequences():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = CausalConv(1, 4, 2, 2), CausalConv(4, 4, 2, 1)

        def forward(self, codes):
            return self.b(F.relu(self.a(F.pad(codes.float(), (1, 0))[..., :-1])))[:, :, None]

    report = check(Net().eval(), (1, 10), 4)
    assert report.causal
    sees = report.sees[0, :, 0]
    assert np.flatnonzero(sees[8]).tolist() == [4, 5, 6, 7]
    shifted = check(lambda codes: Net()(codes.flip(2)).flip(3), (1, 10), 4)
    assert shifted.violations[0].output == ((0,), 0)
    assert "0, channel 0 depends on the code at 1, channel 0" in str(shifted)


def test_what_cannot_be_traced_is_probed():
    layers = Stack(type_b_first).layers

    def untraceable(codes):
        x = layers(codes.float())
        return torch.from_numpy(x.numpy().copy())[:, :, None]

    report = check(untraceable)
    assert report.evidence == "perturbation"
    assert not report.causal
    assert report.violations[0].output == report.violations[0].input == ((0, 0), 0)
    assert report.violations[0].path == ()
    assert "not traced" in str(report)
    fine = Stack(lambda layers: None).layers
    report = check(lambda codes: torch.from_numpy(fine(codes.float()).numpy().copy())[:, :, None])
    assert report.causal
    assert "evidence, not proof" in str(report)


@pytest.mark.parametrize(
    "decide",
    [
        lambda codes: 1 / codes.max().item(),
        lambda codes: 2.0 if (codes == 5).any() else 1.0,
        lambda codes: 2.0 if codes.max() > 4 else 1.0,
    ],
)
def test_what_is_read_on_the_sly_is_found(decide):
    """Looks like a check of the codes' range, and decides about every output."""
    inner = Stack(lambda layers: None)

    def fn(codes):
        return inner(codes) * decide(codes)

    report = check(fn)
    assert report.evidence == "perturbation"
    assert not report.causal
    with pytest.raises(UnsupportedModelError, match="same values in any batch"):
        compile_sampler(fn, SHAPE, Categorical(6))


def test_a_norm_over_the_batch_is_probed_one_image_at_a_time():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = InPlaceBuffer("A", 1, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4, track_running_stats=False)

        def forward(self, codes):
            return self.norm(self.first(codes.float()))[:, :, None]

    report = check(Normed().eval())
    assert report.evidence == "perturbation"
    assert not report.causal
    assert report.sees.reshape(42, 42)[:, :-1].all()  # A reads all but the last


def test_a_model_with_a_state_cannot_be_judged():
    calls = []

    def counting(codes):
        calls.append(1)
        return (
            torch.zeros(len(codes), 2, *codes.shape[1:])
            + len(calls) * torch.fft.fft(codes.float()).real.mean()
        )

    with pytest.raises(UnsupportedModelError, match="take the state out of fn"):
        check(counting)


def test_levels_are_found_out():
    seen = []

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 4)

        def forward(self, codes):
            seen.append(int(codes.max()))
            x = self.embed(codes[:, 0]).movedim(-1, 1)
            return F.pad(x, (1, 0))[..., :-1][:, :, None]

    report = check(Embedded().eval(), levels=None)
    assert report.causal
    assert report.evidence == "proof"
    assert max(m for m in seen[-2:]) <= 9
    with pytest.raises(IndexError):
        check(lambda codes: [][0], levels=None)


def test_bad_input_says_what_to_do():
    fn = Stack(lambda layers: None)
    with pytest.raises(TypeError, match="fn must be callable"):
        check(3)
    with pytest.raises(ValueError, match="eval"):
        check(Stack(lambda layers: None).train())
    with pytest.raises(ValueError, match="shape must be"):
        check(fn, (6, 7, 1, 1))
    with pytest.raises(ValueError, match="order must have shape"):
        check(fn, order=torch.arange(3))
    with pytest.raises(ValueError, match=r"leading dimension n=1, got \(2,\)"):
        check(fn, condition=torch.zeros(2))
    with pytest.raises(ValueError, match=r"fn must return \(1, K, 1 or 1, 6, 7\), got"):
        check(lambda codes: torch.zeros(1, 6, 6, 7))
    with pytest.raises(TypeError, match="fn must return .* got tuple"):
        check(lambda codes: (codes,))


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    report = check(Stack(wrong_row))
    report.plot(tmp_path / "field.png")
    report.plot(tmp_path / "corner.png", output=((0, 0), 0))
    data = (tmp_path / "field.png").read_bytes()
    assert data[:4] == b"\x89PNG"
    assert data != (tmp_path / "corner.png").read_bytes()
    check(Stack(lambda layers: None)).plot(tmp_path / "causal.png")
    check(lambda codes: codes[:, None].float().cumsum(3), (2, 5)).plot(tmp_path / "line.png")


# every kind of node, by hand


def traced_of(graph, codes, params, positions):
    ranks = np.arange(positions)[None]
    return Traced(graph, codes, params, ranks, positions, None, [], {})


def seen_by(graph, codes, node):
    """Codes each scalar of a node depends on: [[set per channel] per position]."""
    addresses = graph.addresses(node)  # (npos, nch)
    found = Dependencies(traced_of(graph, codes, addresses.reshape(1, 1, -1), 0)).sees()
    sets = [set(np.flatnonzero(row).tolist()) for row in found]
    return [sets[p * node.nch : (p + 1) * node.nch] for p in range(node.npos)]


@pytest.fixture
def graph():
    """Codes 0 1 2 in one cell of three channels, code 3 in another cell."""
    graph = Graph()
    code = graph.add("code", 2, 3, 0, code_index=np.array([[0, 1, 2], [3, 4, 5]]))
    return graph, graph.addresses(code).reshape(-1), graph.addresses(code)


def test_linear_reads_by_weight(graph):
    graph, codes, cells = graph
    weight = np.array([[1.0, 0], [0, 0], [0, 2]])
    node = graph.add("linear", 2, 2, 0, taps=[(cells[:, 0], 3)], weight=weight, bias=None)
    assert seen_by(graph, codes, node) == [[{0}, {2}], [{3}, {5}]]
    expr = ("add", ("acc", 1), ("op", 0, 2))
    absent = np.array([0, cells[0, 0]])
    other = graph.add(
        "linear",
        2,
        1,
        0,
        taps=[(absent, 3)],
        weight=weight,
        adds=[graph.addresses(node)[:, 0]],
        operands=[(cells[::-1, 0].copy(), False)],
        expr=expr,
    )
    assert seen_by(graph, codes, other) == [[{2, 5}], [{2, 5}]]


def test_maps_read_channel_by_channel(graph):
    graph, codes, cells = graph
    expr = ("mul", ("op", 0, 1), ("op", 1, 0))
    operands = [(cells[:, 0], False), (np.array([cells[0, 0], 0]), True)]
    node = graph.add("map", 2, 2, 0, operands=operands, expr=expr)
    assert seen_by(graph, codes, node) == [[{0, 1}, {0, 2}], [{4}, {5}]]


def test_the_other_kinds(graph):
    graph, codes, cells = graph
    gather = graph.add("gather", 1, 3, 0, sources=np.array([[cells[1, 2], 0, cells[0, 0]]]))
    assert seen_by(graph, codes, gather) == [[{5}, set(), {0}]]
    table = np.array([[1.0, 7], [2, 7]])
    lookup = graph.add("lookup", 2, 2, 0, index=cells[:, 1].copy(), table=table)
    assert seen_by(graph, codes, lookup) == [[{1}, set()], [{4}, set()]]
    sources = np.array([[cells[0, 0], -1], [cells[0, 0], cells[1, 0]]])
    row = graph.add("row", 2, 2, 0, function="softmax", sources=sources)
    assert seen_by(graph, codes, row) == [[{0}, {0}], [{0, 3}, {0, 3}]]
    dot = graph.add("dot", 1, 1, 0, a=cells[:1, 0], b=cells[1:, 0], width=2)
    assert seen_by(graph, codes, dot) == [[{0, 1, 3, 4}]]
    mix = graph.add(
        "mix",
        1,
        2,
        0,
        weights=np.array([[cells[0, 2], 0]]),
        cells=np.array([[cells[0, 0], cells[1, 0]]]),
    )
    assert seen_by(graph, codes, mix) == [[{0, 2}, {1, 2}]]
