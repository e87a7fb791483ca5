"""Nearest-neighbour fields: against a plain matrix, in chunks, and in batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkit import correspondence, nearest_neighbors
from tfkit.correspondence import follow, similarity


def plain(query, keys):
    query, keys = (x / x.norm(dim=-1, keepdim=True) for x in (query, keys))
    return (query @ keys.T).max(dim=1)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), m=st.integers(1, 40), d=st.integers(1, 9), chunk=st.integers(1, 500))
def test_any_chunk_gives_the_plain_answer(n, m, d, chunk):
    g = torch.Generator().manual_seed(n * m * d)
    query, keys = (torch.randn(k, d, generator=g, dtype=torch.float64) for k in (n, m))
    whole, correspondence.CHUNK = correspondence.CHUNK, chunk
    try:
        field = nearest_neighbors(query, keys)
    finally:
        correspondence.CHUNK = whole
    expected = plain(query, keys)
    assert torch.allclose(field.similarity, expected.values)
    picked = plain(query, keys[field.index]).values  # ties may go either way in chunks
    assert torch.allclose(picked, expected.values)


def test_a_shuffled_frame_finds_itself():
    tokens = torch.randn(64, 8)
    order = torch.randperm(64)
    field = nearest_neighbors(tokens, tokens[order])
    assert torch.equal(order[field.index], torch.arange(64))
    assert torch.allclose(field.similarity, torch.ones(64))


def test_length_does_not_matter_but_direction_does():
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    query = torch.tensor([[0.1, 0.0], [0.0, 50.0], [-3.0, 0.1]])
    assert nearest_neighbors(query, keys).index.tolist() == [0, 1, 2]


def test_a_batch_is_taken_pairwise():
    query, keys = torch.randn(3, 10, 4), torch.randn(3, 7, 4)
    together = nearest_neighbors(query, keys)
    for i in range(3):
        alone = nearest_neighbors(query[i], keys[i])
        assert torch.equal(together.index[i], alone.index)


def test_half_precision_and_zero_tokens_stay_finite():
    field = nearest_neighbors(torch.zeros(3, 4).half(), torch.randn(5, 4).half())
    assert torch.isfinite(field.similarity).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_finds_what_the_same_values_find_in_full(dtype):
    # tokens that are much alike, as a model's are: their cosines differ in the fourth digit
    torch.manual_seed(0)
    query, keys = ((1 + 0.02 * torch.randn(200, 32)).to(dtype) for _ in range(2))
    field, full = nearest_neighbors(query, keys), nearest_neighbors(query.float(), keys.float())
    assert torch.equal(field.index, full.index)
    assert torch.equal(similarity(query, keys), similarity(query.float(), keys.float()))


def test_follow_reads_the_tokens_a_field_points_to():
    tokens = torch.randn(2, 3, 6, 4)  # branches, frames, tokens, width
    index = torch.randint(6, (3, 5))
    out = follow(tokens, index)
    assert out.shape == (2, 3, 5, 4)
    assert torch.equal(out[1, 2, 4], tokens[1, 2, index[2, 4]])


@pytest.mark.parametrize(
    ("query", "keys", "message"),
    [
        (torch.randn(4), torch.randn(3, 4), r"\(4,\).*expected \(n, d\) and \(m, d\)"),
        (torch.randn(5, 4), torch.randn(3, 6), "one width"),
        (torch.randn(5, 4), torch.randn(0, 4), "at least one key"),
        (torch.randn(2, 5, 4), torch.randn(3, 5, 4), "same leading dimensions"),
    ],
)
def test_shapes_that_do_not_fit(query, keys, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(query, keys)
