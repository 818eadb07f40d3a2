"""Text encoders: bytes pooled to a few tokens for the small models, UMT5 for Wan.

Dims: N texts, L bytes or word pieces, S pooled tokens, E width, K classes.
"""

import hashlib
import html
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cfmodel.config import TextConfig
from cfmodel.io.weights import load_weights, save_weights

logger = logging.getLogger(__name__)

PAD, EOS, FIRST_BYTE = 0, 1, 3
HEADS = "heads."
"""Names of the weights of training's heads begin so; older files have them."""
BYTE_VOCABULARY = 384
"""ByT5's: three special ids, 256 bytes, and sentinels that are never used here."""
QUERY_STD = 0.5
EPS = 1e-6


class TextEncoder(Protocol):
    """Texts to tokens that a transformer reads."""

    sha256: str
    """Hash of the weights, which keys caches and is recorded."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Tokens (N, S, E), each text's independent of the others'."""
        ...


def check_text(text: str, max_bytes: int) -> str:
    """``text`` itself.

    Raises:
        ValueError: it is empty, holds bytes that are no UTF-8 or a NUL, or is longer than
            ``max_bytes`` in UTF-8.
    """
    if not text.strip():
        raise ValueError("empty prompt; describe what the film shows")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise ValueError(
            f"prompt is not UTF-8 (character {error.start}); type it in a UTF-8 terminal, or use "
            "--prompts with a UTF-8 file"
        ) from error
    if "\0" in text:
        raise ValueError("prompt holds a NUL character; remove it")
    if size > max_bytes:
        raise ValueError(
            f"prompt of {size} bytes, but text.max_bytes={max_bytes}; shorten it: {text[:40]!r}..."
        )
    return text


def byte_ids(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask (N, L) of UTF-8 bytes, each byte plus 3, then 1, then zeros as padding.

    Source: ByT5's tokenizer, which needs no vocabulary file.

    Example:
        >>> byte_ids(["a", ""])[0].tolist()
        [[100, 1], [1, 0]]
    """
    rows = [[byte + FIRST_BYTE for byte in text.encode("utf-8")] + [EOS] for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows], dtype=torch.int64)
    return ids, (ids != PAD).long()


class BytePooler(nn.Module):
    """Small T5 encoder over bytes whose output learned queries pool to ``tokens`` tokens.

    Args:
        config: sizes; ``max_bytes`` is not used here.
        heads: classes of each classification head, by name. Head i reads pooled token i alone, so
            that training on captions gives tokens a meaning of their own. Heads are for training.

    Raises:
        ValueError: more heads than tokens, or a width that heads do not divide.

    Source: T5 encoder of transformers (relative positions, gated GELU) on ByT5's ids.
    """

    def __init__(self, config: TextConfig, heads: Mapping[str, int] | None = None) -> None:
        from transformers import T5Config
        from transformers.models.t5.modeling_t5 import T5EncoderModel

        super().__init__()
        heads = heads or {}
        if len(heads) > config.tokens:
            raise ValueError(f"{len(heads)} heads for text.tokens={config.tokens}: one token each")
        if config.width % config.heads:
            raise ValueError(f"text.width={config.width} does not divide by heads={config.heads}")
        width = config.width
        sizes = T5Config(
            vocab_size=BYTE_VOCABULARY,
            d_model=width,
            d_kv=width // config.heads,
            d_ff=config.ffn,
            num_layers=config.layers,
            num_heads=config.heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=PAD,
            eos_token_id=EOS,
        )
        self.config = config
        # The stack alone holds every weight once; around it the model ties a second embedding.
        self.encoder = T5EncoderModel(sizes).encoder
        self.query = nn.Parameter(torch.empty(config.tokens, width))
        self.norm_in = nn.LayerNorm(width, eps=EPS)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, eps=EPS),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )
        self.norm_out = nn.LayerNorm(width, eps=EPS)
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, classes))
                for name, classes in heads.items()
            }
        )
        nn.init.normal_(self.query, std=QUERY_STD)

    def forward(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Pooled tokens N S E, of unit variance, for ids and mask of ``byte_ids``."""
        x_NLE = self.encoder(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
        x_NLE = self.norm_in(x_NLE)
        heads = self.config.heads
        q_NHSD = self._split(self.q(self.query), heads)[None].expand(len(ids_NL), -1, -1, -1)
        k_NHLD, v_NHLD = self._split(self.k(x_NLE), heads), self._split(self.v(x_NLE), heads)
        seen = mask_NL.bool()[:, None, None]
        out_NHSD = nnf.scaled_dot_product_attention(q_NHSD, k_NHLD, v_NHLD, attn_mask=seen)
        tokens_NSE = self.query + self.o(out_NHSD.transpose(1, 2).flatten(2))
        return self.norm_out(tokens_NSE + self.mlp(tokens_NSE))

    def classify(self, tokens_NSE: Tensor) -> dict[str, Tensor]:
        """Logits N K of every head, by name."""
        return {
            name: head(tokens_NSE[:, index])
            for index, (name, head) in enumerate(self.heads.items())
        }

    @staticmethod
    def _split(x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


class BytesText:
    """The small encoder as a ``TextEncoder``. Texts are encoded one by one.

    So a text's tokens never depend on which texts share its batch.
    """

    def __init__(self, net: BytePooler, sha256: str) -> None:
        self.net = net.eval()
        self.sha256 = sha256

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Tokens (N, S, E), float32 on the CPU.

        Raises:
            ValueError: an empty or overlong text.
        """
        limit = self.net.config.max_bytes
        device = self.net.query.device
        rows: dict[str, Tensor] = {}
        for text in texts:
            if text not in rows:
                ids, mask = byte_ids([check_text(text, limit)])
                rows[text] = self.net(ids.to(device), mask.to(device))[0].float().cpu()
        return torch.stack([rows[text] for text in texts])


def plain_text(text: str) -> str:
    """Text without HTML entities, runs of white space made one blank.

    Example:
        >>> plain_text(" a &amp;amp;  b ")
        'a & b'
    """
    return " ".join(html.unescape(html.unescape(text)).split())


class Umt5Text:
    """UMT5 as a ``TextEncoder``: Wan's text encoder.

    Args:
        model: a ``UMT5EncoderModel``.
        tokenizer: its tokenizer, called as transformers' are.
        sha256: hash of the weights.
        tokens: length to which texts are cut and padded.
        max_bytes: longest text accepted.

    Source: Wan 2.1: HTML entities and runs of white space are undone first (but text that was
    decoded wrongly is not mended, as ``ftfy`` would); cut at 512 pieces, embeddings behind the
    text's end set to 0.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, sha256: str, *, tokens: int, max_bytes: int
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.sha256 = sha256
        self.tokens = tokens
        self.max_bytes = max_bytes

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, tokens, E), float32 on the CPU.

        Raises:
            ValueError: an empty or overlong text.
        """
        for text in texts:
            check_text(text, self.max_bytes)
        return self.embed(texts)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """As ``encode``, but any text will do: guidance needs the empty one."""
        device = next(self.model.parameters()).device
        rows = []
        for text in texts:
            pieces = self.tokenizer(
                [plain_text(text)], truncation=True, max_length=self.tokens, return_tensors="pt"
            )
            ids, mask = pieces["input_ids"].to(device), pieces["attention_mask"].to(device)
            out_LE = self.model(input_ids=ids, attention_mask=mask).last_hidden_state[0]
            rows.append(nnf.pad(out_LE.float().cpu(), (0, 0, 0, self.tokens - len(out_LE))))
        return torch.stack(rows)


class CachedText:
    """Another encoder's tokens, kept in a folder, one file a text."""

    def __init__(self, encoder: TextEncoder, folder: Path) -> None:
        self.encoder = encoder
        self.sha256 = encoder.sha256
        self.folder = folder

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Tokens (N, S, E), from the folder where they are there.

        Raises:
            ValueError: an empty or overlong text.
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        return torch.stack([self._one(text) for text in texts])

    def path(self, text: str) -> Path:
        """Where a text's tokens are kept; another encoder's weights give another place."""
        key = hashlib.sha256(f"{self.sha256}\0{text}".encode()).hexdigest()
        return self.folder / f"{key}.safetensors"

    def _one(self, text: str) -> Tensor:
        path = self.path(text)
        if path.is_file():
            try:
                return load_weights(path).tensors["tokens"]
            except (ValueError, KeyError) as error:
                logger.warning("encoding a text again, its cached tokens are unusable: %s", error)
        tokens_SE = self.encoder.encode([text])[0]
        save_weights(path, {"tokens": tokens_SE}, config={}, record={}, dtype=None)
        return tokens_SE
