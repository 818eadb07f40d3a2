import torch

from cfmodel.nn.rope import rotary_table, rotate, split_head
from tests.helpers.nano import seeded

GRID = (2, 3)
TOKENS = 6
HEAD = 24


def turned(x, positions):
    return rotate(x, rotary_table(torch.tensor(positions), GRID, HEAD))


def test_split_matches_wan():
    assert split_head(128) == (44, 42, 42)
    assert split_head(24) == (8, 8, 8)
    assert split_head(48) == (16, 16, 16)


def test_rotation_keeps_lengths_and_only_offsets_matter():
    q, k = seeded(1, TOKENS, 2, HEAD, seed=1), seeded(1, TOKENS, 2, HEAD, seed=2)
    torch.testing.assert_close(turned(q, [5]).norm(dim=-1), q.norm(dim=-1))
    near = (turned(q, [5])[:, :, None] * turned(k, [2])[:, None]).sum(-1)
    far = (turned(q, [100_005])[:, :, None] * turned(k, [100_002])[:, None]).sum(-1)
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)
    other = (turned(q, [6])[:, :, None] * turned(k, [2])[:, None]).sum(-1)
    assert (near - other).abs().max() > 0.1


def test_first_token_of_frame_zero_is_not_turned():
    x = seeded(1, TOKENS, 2, HEAD)
    torch.testing.assert_close(turned(x, [0])[:, 0], x[:, 0])


def test_one_pair_by_hand():
    x = torch.zeros(1, TOKENS, 1, HEAD)
    x[..., 0] = 1
    out = turned(x, [3])
    angle = torch.tensor(3.0)  # the first temporal frequency is 1
    torch.testing.assert_close(out[0, :, 0, 0], angle.cos().expand(TOKENS))
    torch.testing.assert_close(out[0, :, 0, 1], angle.sin().expand(TOKENS))


def test_positions_per_sample_equal_separate_tables():
    x = seeded(2, 2 * TOKENS, 2, HEAD)
    both = turned(x, [[0, 4], [7, 2]])
    torch.testing.assert_close(both[:1], turned(x[:1], [0, 4]))
    torch.testing.assert_close(both[1:], turned(x[1:], [7, 2]))


def test_dtype_is_kept():
    x = seeded(1, TOKENS, 2, HEAD).bfloat16()
    assert turned(x, [1]).dtype == torch.bfloat16
