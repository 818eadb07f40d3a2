"""The text half of CLIP and of ViCLIP, and its tokens.

Dims: B texts, L tokens, E width.
"""

import gzip
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from cfbench.scorers.vbench.nets.block import (
    CLIP_BLOCK,
    Block,
    depth,
    filled,
    fitting,
    renamed,
)

EPS = 1e-5
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49_152 - 256 - 2
"""Lines of the vocabulary file that are used, its first one aside."""
WORD_END = "</w>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Words:
    """Byte pairs of CLIP.

    Args:
        path: ``bpe_simple_vocab_16e6.txt.gz`` as OpenAI publishes it.

    Raises:
        ValueError: the file is damaged or something else.

    Source: CLIP (arXiv:2103.00020), section 2.4: lower case, byte pairs, 49,152 of them.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
            pairs = [tuple(line.split()) for line in lines]
            merges = [(a, b) for a, b in pairs]
        except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{path.name} is damaged or no vocabulary of CLIP") from error
        alphabet = _alphabet()
        names = [*alphabet, *(letter + WORD_END for letter in alphabet)]
        names += ["".join(pair) for pair in merges]
        self._ids = {name: number for number, name in enumerate([*names, START, END])}
        bpe = models.BPE(vocab=self._ids, merges=merges, end_of_word_suffix=WORD_END)
        self._words = Tokenizer(bpe)
        self._words.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def __call__(self, texts: Sequence[str], length: int) -> Tensor:
        """Ids (B, length), zeros behind the end; a longer text is cut before its end mark."""
        import ftfy

        rows = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            clean = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
            clean = re.sub(r"\s+", " ", clean).strip().lower()
            inner = self._words.encode(clean, add_special_tokens=False).ids[: length - 2]
            ids = [self._ids[START], *inner, self._ids[END]]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def _alphabet() -> list[str]:
    """The 256 letters that stand for bytes: printable ones for themselves, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = range(256, 256 + 256 - len(printable))
    return [chr(code) for code in [*printable, *others]]


class TextTransformer(nn.Module):
    """One feature a text, read where the text ends.

    Args:
        width: E.
        layers: blocks.
        hidden: width of the MLPs.
        length: L, tokens that positions were learnt for.
        words: size of the vocabulary.
        out: width of the feature.

    Source: CLIP (arXiv:2103.00020), as its weights are published.
    """

    def __init__(
        self, width: int, layers: int, *, hidden: int, length: int, words: int, out: int
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(
            Block(width, hidden, EPS, quick=True, causal=True) for _ in range(layers)
        )
        self.norm_out = nn.LayerNorm(width, eps=EPS)
        self.project = nn.Linear(width, out, bias=False)

    @property
    def length(self) -> int:
        """Tokens of a text."""
        return len(self.positions)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Features (B, out)."""
        x = self.embed(ids_BL) + self.positions
        for block in self.blocks:
            x = block(x)
        # The end mark has the highest id.
        last = ids_BL.argmax(-1)
        return self.project(self.norm_out(x)[torch.arange(len(x), device=x.device), last])


_NAMES = (
    (r"token_embedding\.", "embed."),
    (r"positional_embedding", "positions"),
    (r"ln_final\.", "norm_out."),
    *CLIP_BLOCK,
)


def text_half(tensors: Mapping[str, Tensor]) -> TextTransformer:
    """The text half of CLIP, or ViCLIP's, with its published weights; the rest is left out.

    Raises:
        ValueError: they are of another network.
    """
    found = renamed(tensors, _NAMES)
    ours = ("embed.", "positions", "blocks.", "norm_out.")
    with fitting():
        project = found["text_projection"].T.contiguous()
        found = {k: v for k, v in found.items() if k.startswith(ours)}
        return filled(
            lambda: TextTransformer(
                found["embed.weight"].shape[1],
                depth(found),
                hidden=len(found["blocks.0.fc1.weight"]),
                length=len(found["positions"]),
                words=len(found["embed.weight"]),
                out=len(project),
            ),
            found | {"project.weight": project},
        )
