"""Text encoders: byte ids, pooling, UMT5's padding, the cache."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfmodel.io.text import BytePooler, BytesText, CachedText, Umt5Text, byte_ids
from cfmodel.io.weights import randomize
from cfmodel.presets import ours

CONFIG = ours("nano").text


@pytest.fixture(scope="module")
def net():
    net = BytePooler(CONFIG, {"shape": 8, "color": 5})
    randomize(net, "text")
    return net.eval()


@pytest.fixture(scope="module")
def byt5():
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"])), min_size=1, max_size=4))
def test_ids_are_byt5s(byt5, texts):
    # The real tokenizer reads its special tokens' names out of a text; bytes never do.
    texts = [text.replace("<", "(") for text in texts]
    theirs = byt5(texts, padding=True, return_tensors="pt")
    ids, mask = byte_ids(texts)
    assert torch.equal(ids, theirs["input_ids"])
    assert torch.equal(mask, theirs["attention_mask"].long())


def test_pooled_tokens(net):
    tokens = net(*byte_ids(["a red ball", "ein grüner Würfel hüpft"]))
    assert tokens.shape == (2, CONFIG.tokens, CONFIG.width)
    assert {name: out.shape for name, out in net.classify(tokens).items()} == {
        "shape": (2, 8),
        "color": (2, 5),
    }


@torch.no_grad()
def test_padding_changes_nothing(net):
    alone = net(*byte_ids(["a red ball"]))
    padded = net(*byte_ids(["a red ball", "a much longer text about a blue cube"]))
    torch.testing.assert_close(alone, padded[:1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_order_of_words_matters(net):
    a, b = net(*byte_ids(["red cube and blue ball", "blue cube and red ball"]))
    assert (a - b).abs().max() > 1e-3


def test_each_head_reads_its_own_token(net):
    tokens = torch.randn(1, CONFIG.tokens, CONFIG.width, requires_grad=True)
    (grad,) = torch.autograd.grad(net.classify(tokens)["color"].sum(), tokens)
    read = grad.abs().sum(-1)[0] > 0
    assert read.tolist() == [False, True, False, False]


def test_more_heads_than_tokens_are_refused():
    with pytest.raises(ValueError, match="one token each"):
        BytePooler(CONFIG, dict.fromkeys("abcde", 2))


def test_batch_mates_change_no_bit(net):
    encoder = BytesText(net, "0" * 64)
    texts = ["a red ball", "a much longer text about a blue cube", "a red ball"]
    both = encoder.encode(texts)
    assert torch.equal(both[:1], encoder.encode(texts[:1]))
    assert torch.equal(both[0], both[2])


@pytest.mark.parametrize(("text", "words"), [("  ", "empty prompt"), ("é" * 129, "258 bytes")])
def test_unusable_texts_are_refused(net, text, words):
    with pytest.raises(ValueError, match=words):
        BytesText(net, "0" * 64).encode([text])


class Pieces:
    """A tokenizer of four pieces a byte pair, as transformers' are called."""

    def __call__(self, texts, truncation, max_length, return_tensors):
        assert truncation
        ids, mask = byte_ids(texts)
        return {"input_ids": ids[:, :max_length], "attention_mask": mask[:, :max_length]}


def umt5(tokens=24):
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    model = UMT5EncoderModel(config)
    return Umt5Text(model, Pieces(), "1" * 64, tokens=tokens, max_bytes=64)


@torch.no_grad()
def test_umt5_is_padded_with_zeros_behind_the_text():
    encoder = umt5()
    out = encoder.encode(["a red ball", "one that is longer than 24 pieces"])
    assert out.shape == (2, 24, 16)
    ids, mask = byte_ids(["a red ball"])
    length = ids.shape[1]
    ids = torch.nn.functional.pad(ids, (0, 24 - length))
    mask = torch.nn.functional.pad(mask, (0, 24 - length))
    whole = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(out[0, :length], whole[0, :length], rtol=1e-5, atol=1e-5)
    assert not out[0, length:].any()
    assert out[1, -1].any()


class Counting:
    def __init__(self, encoder):
        self.encoder, self.sha256, self.calls = encoder, encoder.sha256, 0

    def encode(self, texts):
        self.calls += len(texts)
        return self.encoder.encode(texts)


def test_cache_encodes_once_and_heals(net, tmp_path, caplog):
    counting = Counting(BytesText(net, "0" * 64))
    cache = CachedText(counting, tmp_path / "cache")
    first = cache.encode(["a", "b", "a"])
    assert counting.calls == 2
    assert torch.equal(first, counting.encoder.encode(["a", "b", "a"]))
    assert torch.equal(CachedText(counting, tmp_path / "cache").encode(["b"])[0], first[1])
    assert counting.calls == 2
    cache.path("a").write_bytes(b"broken")
    assert torch.equal(cache.encode(["a"])[0], first[0])
    assert counting.calls == 3
    assert "unusable" in caplog.text


def test_cache_tells_encoders_apart(net, tmp_path):
    paths = {CachedText(BytesText(net, sha), tmp_path).path("a") for sha in ("0" * 64, "1" * 64)}
    assert len(paths) == 2


def test_width_must_divide():
    with pytest.raises(ValueError, match="does not divide"):
        BytePooler(dataclasses.replace(CONFIG, width=25))
