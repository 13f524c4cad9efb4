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
