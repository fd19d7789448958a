import json
import math

import pytest
import torch
import torch.nn.functional as F

from fastgen.models import MODELS, GatedPixelCNN, PixelCNN
from fastgen.nn import MaskedConv2d
from fastgen.plain import PlainMaskedConv2d, plain_twin
from fastgen.sampling import naive_sample

LEVELS, CLASSES, MAPS = 5, 4, 2
GREY, COLOR, SMALL = (1, 5, 4), (3, 3, 4), (3, 2, 2)
EACH = pytest.mark.parametrize("kind", [PixelCNN, GatedPixelCNN])


def model(kind, shape=GREY, **kwargs):
    torch.manual_seed(0)
    options = dict(channels=12, layers=2, head_channels=18) | kwargs
    return kind(shape, LEVELS, **options).double().eval()


def codes(shape=GREY, n=3):
    torch.manual_seed(1)
    return torch.randint(LEVELS, (n, *shape))


def condition_for(what, shape=GREY, n=3):
    torch.manual_seed(2)
    labels = torch.randint(CLASSES, (n,))
    features = torch.randn(n, MAPS, *shape[1:], dtype=torch.float64)
    return {"none": None, "labels": labels, "map": features, "both": (labels, features)}[what]


CONDITIONS = {
    "none": {},
    "labels": {"classes": CLASSES},
    "map": {"condition_channels": MAPS},
    "both": {"classes": CLASSES, "condition_channels": MAPS},
}


@torch.no_grad()
def dependence(net, shape):
    """bool (inputs, outputs): whether a change of one code changes the logits of another, both in
    the order colour, row, column."""
    x = codes(shape, 1)
    changed = x.repeat(x.numel(), 1, 1, 1)
    diagonal = changed.view(x.numel(), -1).diagonal()
    diagonal.copy_((diagonal + 2) % LEVELS)
    return ((net(changed) - net(x)).abs() > 1e-12).any(1).flatten(1)


def ranks(shape):
    """The rank of each code in raster order, colours of a pixel one after the other."""
    positions = math.prod(shape[1:])
    return (torch.arange(positions) * shape[0] + torch.arange(shape[0])[:, None]).flatten()


@EACH
@pytest.mark.parametrize("shape", [GREY, COLOR, (2, 4, 3), (1, 1, 6), (1, 6, 1)])
def test_logits_depend_only_on_codes_before(kind, shape):
    rank = ranks(shape)
    seen = dependence(model(kind, shape), shape)
    assert not (seen & (rank[:, None] >= rank)).any()


@pytest.mark.parametrize("shape", [GREY, COLOR])
def test_gated_pixelcnn_sees_every_code_before(shape):
    rank = ranks(shape)
    seen = dependence(model(GatedPixelCNN, shape, layers=4, channels=24, head_channels=48), shape)
    assert torch.equal(seen, rank[:, None] < rank)


def test_pixelcnn_has_the_blind_spot_of_its_paper():
    shape = (1, 5, 7)
    net = model(PixelCNN, shape, layers=1, first_kernel_size=3)
    seen = dependence(net, shape).view(*shape[1:], *shape[1:])
    assert seen[2, 4, 3, 3]  # above, one to the right
    assert not seen[2, 6, 3, 3]  # above, three to the right: the masks never lead there
    assert seen[1, 5, 3, 3]  # two up, two to the right


@EACH
@pytest.mark.parametrize("what", CONDITIONS)
@pytest.mark.parametrize("shape", [GREY, COLOR])
def test_equals_its_plain_twin_in_values_and_gradients(kind, what, shape):
    net = model(kind, shape, **CONDITIONS[what])
    twin = plain_twin(net)
    assert list(net.state_dict()) == list(twin.state_dict())
    x, condition = codes(shape), condition_for(what, shape)
    torch.testing.assert_close(net(x, condition), twin(x, condition))
    for each in (net, twin):
        each.log_prob(x, condition).sum().backward()
    for (name, ours), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_plain_twin_is_plain_in_either_format(memory_format):
    net = model(GatedPixelCNN, COLOR)
    twin = plain_twin(net, memory_format)
    formats = []
    twin.head.register_forward_pre_hook(
        lambda layer, inputs: formats.append(inputs[0].is_contiguous(memory_format=memory_format))
    )
    torch.testing.assert_close(twin(codes(COLOR)), net(codes(COLOR)))
    assert formats == [True]
    assert not any(isinstance(m, MaskedConv2d) for m in twin.modules())
    assert not any(isinstance(m, PlainMaskedConv2d) for m in net.modules())  # left alone


@EACH
@pytest.mark.parametrize("shape", [GREY, COLOR])
def test_log_prob_adds_up_the_log_softmax_of_the_codes(kind, shape):
    net = model(kind, shape)
    x = codes(shape)
    logits = net(x)
    assert logits.shape == (3, LEVELS, *shape)
    expected = torch.log_softmax(logits, 1).gather(1, x[:, None]).flatten(1).sum(1)
    torch.testing.assert_close(net.log_prob(x), expected)
    bits = -expected / (math.prod(shape) * math.log(2))
    torch.testing.assert_close(net.bits_per_dim(x), bits)


@EACH
def test_probabilities_of_all_images_add_up_to_one(kind):
    torch.manual_seed(0)
    net = kind((2, 1, 2), 3, channels=12, layers=1).double()
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 1, 2)
    torch.testing.assert_close(net.log_prob(every).exp().sum(), torch.ones((), dtype=torch.float64))


@EACH
@pytest.mark.parametrize("what", CONDITIONS)
def test_samples_are_what_the_model_says(kind, what):
    net = model(kind, SMALL, layers=1, **CONDITIONS[what])
    condition = condition_for(what, SMALL)
    uniforms = torch.rand(3, 1, *SMALL)
    drawn = net.sample(3, condition, uniforms=uniforms)
    assert drawn.shape == (3, *SMALL)
    cdf = torch.softmax(net(drawn, condition), 1).cumsum(1)
    assert torch.equal(drawn, (cdf <= uniforms).sum(1))


@EACH
def test_samples_do_not_depend_on_the_batch(kind):
    net = model(kind, SMALL, classes=CLASSES, layers=1).float()
    labels = torch.tensor([0, 1, 2, 3, 0])
    whole = net.sample(5, labels, seed=1)
    assert torch.equal(net.sample(5, labels, seed=1, batch=2), whole)
    assert torch.equal(net.sample(2, labels[3:], seed=1, first_index=3), whole[3:])


def test_completion_keeps_the_known_half():
    net = model(GatedPixelCNN)
    known, mask = codes(n=3), torch.zeros(GREY, dtype=torch.bool)
    mask[:, :3] = True
    drawn = net.sample(3, seed=0, known=known, known_mask=mask)
    assert torch.equal(drawn[..., :3, :], known[..., :3, :])
    assert not torch.equal(drawn, known)


def test_sampling_is_in_eval_mode_and_returns_to_training():
    net = model(PixelCNN, SMALL, dropout=0.5).train()
    assert torch.equal(net.sample(2, seed=0), net.sample(2, seed=0))
    assert all(module.training for module in net.modules())


@EACH
def test_config_rebuilds_the_model(kind):
    net = model(kind, COLOR, **CONDITIONS["both"], kernel_size=5, dropout=0.25)
    config = json.loads(json.dumps(net.config))
    again = kind(**config).double().eval()
    again.load_state_dict(net.state_dict())
    condition = condition_for("both", COLOR)
    assert torch.equal(again(codes(COLOR), condition), net(codes(COLOR), condition))
    assert again.config == net.config
    assert kind in MODELS.values()


@EACH
def test_defaults_suit_grey_and_colour(kind):
    assert kind((1, 8, 8), 2).order == "raster"
    assert kind((3, 8, 8), 2).order == "subpixel"


@EACH
def test_compiles_without_a_graph_break(kind):
    net = model(kind, COLOR, layers=1, **CONDITIONS["labels"])
    x, labels = codes(COLOR), condition_for("labels", COLOR)

    def loss(x, labels):
        return net.bits_per_dim(x, labels).mean()

    expected = torch.autograd.grad(loss(x, labels), net.parameters())
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, labels), net.parameters())
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@EACH
@pytest.mark.parametrize("what", ["labels", "map"])
def test_compiles_twice_for_all_batch_sizes(kind, what):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net = model(kind, COLOR, layers=1, **CONDITIONS[what])
    compiled = torch.compile(net.log_prob, fullgraph=True, backend="eager")
    for n in (4, 2, 5, 3):
        x, condition = codes(COLOR, n), condition_for(what, COLOR, n)
        torch.testing.assert_close(compiled(x, condition), net.log_prob(x, condition))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@EACH
@pytest.mark.parametrize("shape", [GREY, COLOR])
def test_the_network_runs_in_channels_last(kind, shape):
    net = model(kind, shape, **CONDITIONS["both"])
    inputs = []
    for module in net.modules():
        if isinstance(module, MaskedConv2d):
            module.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    net(codes(shape), condition_for("both", shape))
    assert len(inputs) == sum(isinstance(m, MaskedConv2d) for m in net.modules())
    assert all(x.stride(1) == 1 and x.stride(3) == x.shape[1] for x in inputs)


@EACH
@pytest.mark.parametrize("shape", [GREY, COLOR])
def test_codes_may_enter_as_learned_vectors(kind, shape):
    net = model(kind, shape, embedding=4)
    rank = ranks(shape)
    seen = dependence(net, shape)
    assert seen.any() and not (seen & (rank[:, None] >= rank)).any()
    torch.testing.assert_close(net(codes(shape)), plain_twin(net)(codes(shape)))
    uniforms = torch.rand(2, 1, *shape)
    naive = naive_sample(net, shape, net.likelihood, 2, order=net.order, uniforms=uniforms)
    assert torch.equal(net.sample(2, uniforms=uniforms), naive)
    assert kind(**net.config).embedding.weight.shape == (LEVELS, 4)


def test_learns():
    torch.manual_seed(0)
    x = torch.randint(LEVELS, (8, 1, 1, 1)).expand(8, 1, 4, 4).contiguous()  # constant images
    net = GatedPixelCNN((1, 4, 4), LEVELS, channels=8, layers=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = net.bits_per_dim(x).mean()
        loss.backward()
        optimizer.step()
    assert loss < 1.2  # log2(5) = 2.3 at the start


def test_an_empty_batch_gives_an_empty_result():
    net = model(GatedPixelCNN, classes=CLASSES)
    assert net.log_prob(codes(n=0), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert net.sample(0, torch.zeros(0, dtype=torch.int64)).shape == (0, *GREY)


@EACH
def test_halves_the_precision_under_autocast(kind):
    net = model(kind, classes=CLASSES).float()
    labels = condition_for("labels")
    with torch.autocast("cpu", torch.bfloat16):
        half = net.bits_per_dim(codes(), labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, net.bits_per_dim(codes(), labels), atol=0.02, rtol=0.02)


LABELS = condition_for("labels")


@EACH
@pytest.mark.parametrize(
    "options, arguments, error, named",
    [
        ({}, (codes().float(),), TypeError, "codes must be an int64 tensor, got torch.float32"),
        ({}, (codes((1, 4, 5)),), ValueError, r"codes must be \(B, 1, 5, 4\), got \(3, 1, 4, 5\)"),
        ({}, (codes() + 1,), ValueError, "codes must hold codes in 0 .. 4, got 5"),
        ({}, (codes() - 1,), ValueError, "codes must hold codes in 0 .. 4, got -1"),
        ({}, (codes(), LABELS), ValueError, "condition must be None, got Tensor; build the model"),
        ("labels", (codes(),), ValueError, r"must be int64 labels \(3,\), got NoneType"),
        ("labels", (codes(), 3), TypeError, r"must be int64 labels \(3,\), got int"),
        ("labels", (codes(), LABELS[:2]), ValueError, r"got \(2,\)"),
        ("labels", (codes(), LABELS.float()), TypeError, "got torch.float32"),
        ("labels", (codes(), LABELS + CLASSES), ValueError, "must hold labels in 0 .. 3, got"),
        ("labels", (codes(), LABELS - CLASSES), ValueError, "must hold labels in 0 .. 3, got -"),
        ("map", (codes(), LABELS), TypeError, r"must be a float map \(3, 2, 5, 4\), got torch.int"),
        ("map", (codes(), torch.rand(3, 2, 4, 5)), ValueError, r"got \(3, 2, 4, 5\)"),
        ("both", (codes(), LABELS), ValueError, "int64 labels .* and a float map .*, got Tensor"),
    ],
)
def test_bad_input_says_what_to_do(kind, options, arguments, error, named):
    net = model(kind, **(CONDITIONS[options] if options else {}))
    with pytest.raises(error, match=f"fastgen.models.{kind.__name__}: .*{named}"):
        net.log_prob(*arguments)


@EACH
@pytest.mark.parametrize(
    "arguments, named",
    [
        (dict(shape=(8, 8)), r"shape must be \(C, H, W\), got \(8, 8\)"),
        (dict(shape=4), r"shape must be \(C, H, W\), got 4"),
        (dict(levels=0), "levels must be a positive int, got 0"),
        (dict(layers=-1), "layers must be an int >= 0, got -1"),
        (dict(layers=1.5), "layers must be an int >= 0, got 1.5"),
        (dict(channels=0), "channels must be a positive int, got 0"),
        (dict(head_channels=6.0), "head_channels must be a positive int, got 6.0"),
        (dict(classes=0), "classes must be a positive int, got 0"),
        (dict(condition_channels=-1), "condition_channels must be a positive int, got -1"),
        (dict(shape=COLOR, channels=64), "channels must be a multiple of . for images of 3"),
        (dict(shape=COLOR, head_channels=64), "head_channels must be a multiple of 3"),
        (dict(embedding=0), "embedding must be a positive int, got 0"),
        (dict(kernel_size=2), "kernel_size must be odd"),
    ],
)
def test_bad_arguments_say_what_to_do(kind, arguments, named):
    with pytest.raises(ValueError, match=named):
        kind(**(dict(shape=GREY, levels=LEVELS) | arguments))


@EACH
@pytest.mark.parametrize("condition", [None, LABELS[:2], LABELS + CLASSES])
def test_a_bad_condition_stops_sampling_before_it_starts(kind, condition):
    with pytest.raises(ValueError, match=f"fastgen.models.{kind.__name__}: condition must"):
        model(kind, classes=CLASSES).sample(3, condition)


def test_plain_twin_is_equal_to_hand_written_layers():
    net = model(PixelCNN, layers=1)
    x = codes().double() * (2 / (LEVELS - 1)) - 1

    def conv(layer, x):
        same = [k // 2 for k in layer.kernel_size]
        return F.conv2d(x, layer.weight * layer.mask, layer.bias, padding=same)

    h = conv(net.first, x)
    block = net.blocks[0]
    y = F.relu(conv(block.spatial, F.relu(conv(block.reduce, F.relu(h)))))
    h = h + conv(block.expand, y)
    for at in (1, 3, 5):
        h = conv(net.head[at], F.relu(h))
    torch.testing.assert_close(net(codes())[:, :, 0], h)
