"""Small random classifiers of Hugging Face's, for tests of judges."""

import pytest
import torch

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "the"]


def save_tokenizer(folder, words=tuple(WORDS), **settings) -> None:
    """A tokenizer of whole words; without a limit to a text's length if `settings` give none."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"pad_token": "[PAD]", "unk_token": "[UNK]"} | settings
    ).save_pretrained(folder)


def save_classifier(folder, labels: list[str], **settings):
    """A tiny random classifier with a tokenizer of WORDS; `labels` [] saves a language model instead."""
    transformers = pytest.importorskip("transformers")
    save_tokenizer(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        id2label=dict(enumerate(labels or ["x"])),
        initializer_range=1.0,
        **settings,
    )
    torch.manual_seed(0)
    model = (transformers.BertForSequenceClassification if labels else transformers.BertForMaskedLM)(config).eval()
    model.save_pretrained(folder)
    return model


# --- folders as people have them ---

LETTERS = "abcdefghijklmnopqrstuvwxyz.,:?!'"
WORD_PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *("the", "film", "is", "good", "bad", "question", "answer"),
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
]
SENTENCE_PIECES = [
    *((mark, 0.0) for mark in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")),
    *((f"▁{word}", -2.0) for word in ("the", "film", "is", "good", "bad", "question", "answer")),
    *((piece, -5.0) for letter in LETTERS for piece in (letter, f"▁{letter}")),
    ("▁", -5.0),
    ("[MASK]", 0.0),
]
_WIDTH = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
ARCHITECTURES = {  # name of the architecture -> its configuration's settings
    "Bert": _WIDTH | dict(max_position_embeddings=64),
    "DistilBert": dict(dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64),
    "DebertaV2": _WIDTH
    | dict(max_position_embeddings=64, relative_attention=True, position_buckets=16, norm_rel_ebd="layer_norm")
    | dict(share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0)
    | dict(pooler_hidden_size=16),
}


def save_folder(
    folder,
    architecture: str,
    labels: int = 2,
    names: list[str] | None = None,
    bin: bool = False,
    seed: int = 0,
    **settings,
):
    """A small random classifier of ARCHITECTURES with its true kind of tokenizer, in the files that the hub has.

    names: of the labels, LABEL_0 and so on without them; bin: its weights in pytorch_model.bin. Returns the model and
    the tokenizer.
    """
    transformers = pytest.importorskip("transformers")
    if architecture == "DebertaV2":
        tokenizer = transformers.DebertaV2Tokenizer(SENTENCE_PIECES, unk_id=3, **settings)
    else:
        tokenizer = transformers.BertTokenizer({piece: i for i, piece in enumerate(WORD_PIECES)}, **settings)
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(tokenizer), initializer_range=0.4, num_labels=labels, **ARCHITECTURES[architecture]
    )
    if names:
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    torch.manual_seed(seed)
    model = getattr(transformers, f"{architecture}ForSequenceClassification")(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if bin:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model, tokenizer
