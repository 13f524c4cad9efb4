"""A small sentence encoder by hand: WordPiece tokens, BERT's blocks, vectors of a text as means over its tokens.

It reads the weights of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; trained for sentences by the
sentence-transformers project; Apache-2.0) and others of that shape, in Hugging Face's layout: config.json, vocab.txt
and model.safetensors. Shapes: B texts, T tokens, C width, L blocks.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import read_json_object

WEIGHTS, SETTINGS, VOCABULARY = "model.safetensors", "config.json", "vocab.txt"
LONGEST = 256  # tokens of a text; MiniLM was trained for sentences on 128, and is used with up to 256
LONGEST_WORD = 100  # characters; a longer word is unknown (BERT)
_CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2FA1F), (0xF900, 0xFAFF))


# --- tokens ---


class WordPieces:
    """The tokens of uncased BERT: words in lower case without accents, split from the left into the longest pieces of a
    vocabulary.
    """

    def __init__(self, vocabulary: list[str]):
        """Raises UserError if the vocabulary lacks one of BERT's marks."""
        self.ids = {piece: number for number, piece in enumerate(vocabulary)}
        for mark in ("[CLS]", "[SEP]", "[UNK]"):
            if mark not in self.ids:
                raise UserError(f"{VOCABULARY} lacks {mark}: it is not a vocabulary of BERT's")
        self.first, self.last, self.unknown = (self.ids[mark] for mark in ("[CLS]", "[SEP]", "[UNK]"))

    @classmethod
    def load(cls, folder: Path) -> "WordPieces":
        """From vocab.txt, a piece a line. Raises UserError if it is missing."""
        path = Path(folder) / VOCABULARY
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        return cls(path.read_text(encoding="utf-8").split("\n"))

    def encode(self, text: str, longest: int = LONGEST) -> list[int]:
        """[CLS] text [SEP] as token ids, `longest` of them at most; a longer text loses its beginning."""
        ids = [number for word in words_of(text) for number in self.pieces(word)]
        return [self.first, *ids[max(0, len(ids) - longest + 2) :], self.last]

    def pieces(self, word: str) -> list[int]:
        """The ids of a word's pieces; those after the first begin with ## in the vocabulary."""
        ids, start = list[int](), 0
        while start < len(word) <= LONGEST_WORD:
            mark = "##" if start else ""
            end = next((end for end in range(len(word), start, -1) if mark + word[start:end] in self.ids), None)
            if end is None:
                return [self.unknown]
            ids.append(self.ids[mark + word[start:end]])
            start = end
        return ids if word and len(word) <= LONGEST_WORD else [self.unknown]


def words_of(text: str) -> Iterator[str]:
    """Words, single punctuation marks and single Chinese characters of a text, in lower case, without accents and
    control characters.
    """
    kept = (" " if _is_space(c) else c for c in text if _is_space(c) or not _is_control(c))
    spaced = "".join(f" {c} " if _is_chinese(c) else c for c in kept)
    plain = "".join(c for c in unicodedata.normalize("NFD", spaced) if unicodedata.category(c) != "Mn")
    for run in plain.lower().split():
        for punctuation, letters in itertools.groupby(run, _is_punctuation):
            if punctuation:
                yield from letters
            else:
                yield "".join(letters)


def _is_space(c: str) -> bool:
    return c in "\t\n\r" or unicodedata.category(c) == "Zs"


def _is_control(c: str) -> bool:
    return c in "\0\ufffd" or unicodedata.category(c).startswith("C")


def _is_chinese(c: str) -> bool:
    return any(low <= ord(c) <= high for low, high in _CHINESE)


def _is_punctuation(c: str) -> bool:
    """Of Unicode, and all of ASCII that is neither letter nor digit: BERT takes $ or ^ for punctuation too."""
    return unicodedata.category(c).startswith("P") or ("!" <= c <= "~" and not c.isalnum())


# --- the encoder ---


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder."""

    vocabulary: int = 30522
    width: int = 384
    blocks: int = 6
    heads: int = 12
    inner: int = 1536  # width inside a block's feed-forward layer
    places: int = 512  # longest text, in tokens
    epsilon: float = 1e-12  # of layer norms

    @classmethod
    def load(cls, path: Path) -> "EncoderConfig":
        """From Hugging Face's config.json. Raises UserError if it describes another architecture."""
        stored = read_json_object(path)
        if (stored.get("model_type"), stored.get("hidden_act"), stored.get("position_embedding_type", "absolute")) != (
            "bert",
            "gelu",
            "absolute",
        ):
            raise UserError(f"{path} does not describe a BERT with gelu and absolute positions, such as MiniLM")
        names = dict(
            vocabulary="vocab_size",
            width="hidden_size",
            blocks="num_hidden_layers",
            heads="num_attention_heads",
            inner="intermediate_size",
            places="max_position_embeddings",
        )
        missing = [theirs for theirs in names.values() if not isinstance(stored.get(theirs), int)]
        if missing:
            raise UserError(f"{path} lacks {missing[0]}")
        numbers = {ours: int(stored[theirs]) for ours, theirs in names.items()}
        return cls(**numbers, epsilon=float(stored.get("layer_norm_eps", 1e-12)))


class Block(nn.Module):
    """Attention over all tokens, then a feed-forward layer; each is added to its input and normed after that."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        C, self.heads = config.width, config.heads
        self.query, self.key, self.value, self.out = (nn.Linear(C, C) for _ in range(4))
        self.up, self.down = nn.Linear(C, config.inner), nn.Linear(config.inner, C)
        self.norm_1, self.norm_2 = (nn.LayerNorm(C, config.epsilon) for _ in range(2))

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """x float32 [B, T, C], seen bool [B, T]: which are tokens, not padding -> [B, T, C]."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, H, T, C / H]
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :])
        x = self.norm_1(x + self.out(mixed.transpose(1, 2).flatten(2)))
        y: torch.Tensor = self.norm_2(x + self.down(F.gelu(self.up(x))))
        return y


class SentenceEncoder(nn.Module):
    """BERT without a head: a vector for each token after each block."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        C, self.config = config.width, config
        self.words, self.places = nn.Embedding(config.vocabulary, C), nn.Embedding(config.places, C)
        self.kinds = nn.Embedding(2, C)  # of the first and the second sentence; there is only a first one here
        self.norm = nn.LayerNorm(C, config.epsilon)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))

    @classmethod
    def load(cls, folder: Path) -> "SentenceEncoder":
        """From config.json and model.safetensors, in Hugging Face's names, on the CPU in float32. Raises UserError if
        they are missing, damaged or of another shape.
        """
        folder = Path(folder)
        encoder, path = cls(EncoderConfig.load(folder / SETTINGS)), folder / WEIGHTS
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        try:
            stored = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged: {error}") from None
        ours = {name: tensor.float() for theirs, tensor in stored.items() if (name := our_name(theirs))}
        for name, parameter in encoder.state_dict().items():
            if name not in ours or ours[name].shape != parameter.shape:
                shape = f"of shape {list(ours[name].shape)}" if name in ours else "missing"
                raise UserError(f"{path}: {their_name(name)} is {shape}; by config.json it has {list(parameter.shape)}")
            if not torch.isfinite(ours[name]).all():
                raise UserError(f"{path}: {their_name(name)} holds a NaN or an infinity; the file is damaged")
        encoder.load_state_dict({name: ours[name] for name in encoder.state_dict()})
        return encoder.eval().requires_grad_(False)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the first block reads: tokens int64 [B, T] -> float32 [B, T, C]."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x: torch.Tensor = self.norm(self.words(tokens) + self.places(places) + self.kinds.weight[0])
        return x

    def forward(self, tokens: torch.Tensor, seen: torch.Tensor) -> list[torch.Tensor]:
        """tokens int64 [B, T], seen bool [B, T] -> L + 1 vectors of each token, float32 [B, T, C] each: what the first
        block reads, then what each block gives.
        """
        states = [self.embed(tokens)]
        for block in self.blocks:
            states.append(block(states[-1], seen))
        return states


# Hugging Face's names of the parameters, and ours
_NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "places",
    "embeddings.token_type_embeddings": "kinds",
    "embeddings.LayerNorm": "norm",
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm_1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm_2",
}


def their_name(ours: str) -> str:
    """Hugging Face's name of one of the encoder's parameters."""
    *block, name, kind = ours.rsplit(".", 2)
    theirs = next(theirs for theirs, mine in _NAMES.items() if mine == name)
    return f"{block[0].replace('blocks.', 'encoder.layer.') + '.' if block else ''}{theirs}.{kind}"


def our_name(theirs: str) -> str | None:
    """The name here of one of Hugging Face's parameters, with or without `bert.` before it; None for what is not a part
    of the encoder: its pooler, heads, numbers of places.
    """
    found = re.fullmatch(r"(?:bert\.)?(?:encoder\.layer\.(\d+)\.)?(.+)\.(weight|bias)", theirs)
    if found is None or found[2] not in _NAMES:
        return None
    return f"{'' if found[1] is None else f'blocks.{found[1]}.'}{_NAMES[found[2]]}.{found[3]}"


def pooled(states: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """The mean over a text's tokens, of length 1: states float32 [B, T, C], seen bool [B, T] -> [B, C]."""
    mask = seen[:, :, None].to(states.dtype)
    return F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
