import pytest
import torch

from fastgen.models.image_nets import ConvEncoder, MLPEncoder, image_decoder, image_encoder

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (1, 13, 9), (2, 37, 50)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize("classes", [None, 4])
def test_images_become_vectors_and_vectors_images(shape, net, classes):
    options = {"net": net, "width": 8, "layers": 1, "classes": classes}
    encoder = image_encoder(shape, 6, **options)
    decoder = image_decoder(6, shape, out=5, **options)
    x = torch.rand(2, *shape, requires_grad=True)
    given = () if classes is None else (torch.tensor([0, 3]),)
    h = encoder(x, *given)
    y = decoder(h, *given)
    assert h.shape == (2, 6) and y.shape == (2, 5, *shape[1:])
    y.square().sum().backward()
    assert x.grad.abs().amax((0, 1)).gt(0).all()  # no pixel is cut off
    assert all(p.grad is not None for m in (encoder, decoder) for p in m.parameters())
    assert image_decoder(6, shape, **options)(h, *given).shape == x.shape


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_labels_matter(net):
    options = {"net": net, "width": 8, "classes": 2}
    encoder, x = image_encoder((1, 8, 8), 3, **options), torch.rand(1, 1, 8, 8)
    decoder = image_decoder(3, (1, 8, 8), **options)
    zero, one = torch.tensor([0]), torch.tensor([1])
    assert not torch.equal(encoder(x, zero), encoder(x, one))
    z = torch.zeros(1, 3)
    assert not torch.equal(decoder(z, zero), decoder(z, one))


def test_small_images_get_layers_and_large_ones_convolutions():
    assert isinstance(image_encoder((1, 28, 28), 2), MLPEncoder)
    assert isinstance(image_encoder((3, 32, 32), 2), ConvEncoder)


def test_networks_that_do_not_fit_say_what_to_do():
    with pytest.raises(ValueError, match="net must be 'mlp' or 'conv', got 'resnet'"):
        image_encoder((1, 8, 8), 2, net="resnet")
    with pytest.raises(ValueError, match="net='conv' needs images of 8x8 or more, got"):
        image_decoder(2, (1, 8, 7), net="conv")
