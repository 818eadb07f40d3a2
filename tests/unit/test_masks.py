import pytest
import torch

from cfmodel.nn.masks import (
    and_masks,
    block_causal,
    frame_mask,
    sliding_window,
    teacher_forcing,
    token_mask,
)


def pairs(mask, frames):
    index = torch.arange(frames)
    allowed = mask(index[:, None], index[None, :])
    return {(int(q), int(k)) for q, k in allowed.nonzero()}


def test_block_causal_is_bidirectional_inside_a_chunk():
    assert pairs(block_causal(2), 4) == {
        (q, k) for q in range(4) for k in range(4) if k < (2 if q < 2 else 4)
    }


def test_sliding_window_keeps_the_sink():
    allowed = pairs(sliding_window(2, 4, sink=1), 8)
    assert {k for q, k in allowed if q == 7} == {0, 4, 5, 6, 7}
    assert {k for q, k in allowed if q == 6} == {0, 4, 5, 6, 7}
    assert {k for q, k in allowed if q == 0} == {0, 1}


def test_sliding_window_that_holds_no_chunk_is_refused():
    with pytest.raises(ValueError, match="window=2"):
        sliding_window(3, 2)


def test_teacher_forcing_by_definition():
    frames, chunk = 6, 2
    expected = set()
    for q in range(2 * frames):
        for k in range(2 * frames):
            qc, kc = q % frames // chunk, k % frames // chunk
            q_noisy, k_noisy = q >= frames, k >= frames
            if not q_noisy and not k_noisy and kc <= qc:
                expected.add((q, k))
            if q_noisy and not k_noisy and kc < qc:
                expected.add((q, k))
            if q_noisy and k_noisy and kc == qc:
                expected.add((q, k))
    assert pairs(teacher_forcing(frames, chunk), 2 * frames) == expected


def test_teacher_forcing_needs_whole_chunks():
    with pytest.raises(ValueError, match="frames=5"):
        teacher_forcing(5, 3)


def test_and_masks():
    both = and_masks(block_causal(2), sliding_window(2, 2))
    assert pairs(both, 6) == pairs(block_causal(2), 6) & pairs(sliding_window(2, 2), 6)


def test_token_mask_expands_frames_and_both_forms_agree():
    dense = frame_mask(block_causal(2), 4, 3).dense
    assert dense is not None
    assert dense.shape == (1, 1, 12, 12)
    assert torch.equal(dense[0, 0, ::3, ::3], frame_mask(block_causal(2), 4, 1).dense[0, 0])
    block = frame_mask(block_causal(2), 4, 3, form="block").block
    assert block is not None
    q, k = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    zero = torch.tensor(0)
    assert torch.equal(block.mask_mod(zero, zero, q, k), dense[0, 0])


def test_token_mask_per_sample():
    allowed = torch.tensor([[[True, False]], [[True, True]]])
    dense = token_mask(allowed, 2).dense
    assert dense is not None
    assert dense[:, 0, 0].tolist() == [[True, True, False, False], [True] * 4]
