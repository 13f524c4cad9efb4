"""A small random sentence encoder with a vocabulary of letters, in the files that MiniLM has."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lm_human_preferences.judging.embeddings import LAYERS, RATING, Linear, save_judge
from lm_human_preferences.judging.sentence_encoder import EncoderConfig, SentenceEncoder, their_name

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-$"
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "film",
    "good",
    "##ly",
    "中",
    *LETTERS,
    *(f"##{c}" for c in LETTERS),
]
CONFIG = EncoderConfig(vocabulary=len(PIECES), width=16, blocks=4, heads=2, inner=32, places=40)


def write_encoder(folder: Path, config: EncoderConfig = CONFIG) -> Path:
    """The three files of a random encoder in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    weights = {name: torch.randn_like(value) * 0.3 for name, value in SentenceEncoder(config).state_dict().items()}
    save_file({their_name(name): value for name, value in weights.items()}, folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    settings = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.blocks,
        "num_attention_heads": config.heads,
        "intermediate_size": config.inner,
        "max_position_embeddings": config.places,
        "layer_norm_eps": config.epsilon,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def write_judge(folder: Path, config: EncoderConfig = CONFIG) -> Path:
    """A judge with a random encoder and random regressions in `folder`."""
    random = np.random.default_rng(0)
    rating, sense = (Linear(random.normal(size=LAYERS * config.width), 0.5) for _ in range(2))
    save_judge(write_encoder(folder, config) / RATING, rating, sense)
    return folder
