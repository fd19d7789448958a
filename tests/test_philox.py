import pytest
import torch

from fastgen.reference.philox import SAMPLING_STREAM, philox4x32, sampling_uniforms, to_uniform

# the known-answer vectors that come with Random123 (kat_vectors, philox4x32 10)
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_gives_the_known_answers(counter, key, expected):
    low, high = words(key)
    out = philox4x32(torch.tensor(words(counter)), high << 32 | low)
    assert out.tolist() == words(expected)


def test_blocks_of_a_batch_are_the_blocks_one_by_one():
    counters = torch.randint(0, 2**32, (5, 3, 4))
    together = philox4x32(counters, 12345)
    for i in range(5):
        for j in range(3):
            assert torch.equal(together[i, j], philox4x32(counters[i, j], 12345))


def test_uniforms_are_the_upper_24_bits():
    u = to_uniform(torch.tensor([0, 255, 256, 2**32 - 1]))
    assert u.dtype == torch.float32
    assert u.tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]


@pytest.mark.parametrize("draws, shape", [(1, (1, 2, 3)), (2, (3, 2, 2)), (1, (2, 5)), (3, (3, 1))])
def test_each_sampling_uniform_stands_where_its_definition_says(draws, shape):
    seed, first = 0xFEDCBA9876543210, 41
    u = sampling_uniforms(seed, first, 2, draws, shape).flatten(3)
    assert u.shape[:3] == (2, draws, shape[0])
    for i in range(2):
        for d in range(draws):
            for c in range(shape[0]):
                for p in range(u.shape[3]):
                    at = d * shape[0] + c
                    counter = [first + i, 0, p, SAMPLING_STREAM << 16 | at // 4]
                    block = philox4x32(torch.tensor(counter), seed)
                    assert u[i, d, c, p] == to_uniform(block[at % 4])


def test_a_later_first_index_goes_on_with_the_same_stream():
    whole = sampling_uniforms(7, 0, 6, 1, (1, 4, 4))
    assert torch.equal(whole[4:], sampling_uniforms(7, 4, 2, 1, (1, 4, 4)))


def test_the_sample_index_has_64_bits():
    across = sampling_uniforms(7, 2**32 - 1, 2, 1, (1, 1, 2))
    assert torch.equal(across[1:], sampling_uniforms(7, 2**32, 1, 1, (1, 1, 2)))
    counter = torch.tensor([0, 1, 0, SAMPLING_STREAM << 16])
    assert across[1, 0, 0, 0, 0] == to_uniform(philox4x32(counter, 7))[0]
    assert sampling_uniforms(7, 2**64 - 1, 1, 1, (1, 1, 2)).shape == (1, 1, 1, 1, 2)


def test_no_samples_and_no_surprise():
    assert sampling_uniforms(0, 0, 0, 2, (3, 4, 5)).shape == (0, 2, 3, 4, 5)


def test_uniforms_are_uniform_and_uncorrelated():
    u = sampling_uniforms(3, 0, 100, 1, (1, 20, 20)).double().flatten()
    n = u.numel()
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(u.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    for lag in (1, 20, 400):  # neighbour in the row, in the column, in the batch
        a, b = u[:-lag] - 0.5, u[lag:] - 0.5
        assert abs((a * b).mean() * 12) < 5 / n**0.5
