"""saved_models/tiny from text: prepares the corpus, trains in three stages, writes the model folder.

    python datasets/movies.py
    python saved_models/train_tiny.py --corpus FOLDER [--output saved_models/tiny_new] [--epochs 10] [--device cuda]

FOLDER holds the corpus as .jsonl or .jsonl.gz files, a document a line (`source`, `text`); files named valid* are held
out. Each stage is a run of `launch.py train_sft`, whose command is printed and whose folder stays:

    tiny_corpus   everything, fiction above all, at a constant rate; for a GPU, where it takes three minutes
    tiny_modern   reviews, plots, essays and film sentences above all, while the rate falls to nothing
    tiny_movies   sentences of film reviews with some of the rest, so that it is not forgotten

A stage whose result is there is not trained again, and one that was interrupted goes on: --again begins anew.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from lm_human_preferences.data.queries import dataset_folder
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.language.model_folders import load_model, save_model

HERE = Path(__file__).resolve().parent
UNWANTED = "datasets/unwanted_words.txt"
# How often a document of each source is read in one epoch of each stage.
WEIGHTS = {
    "tiny_corpus": {
        "classic-books": 0.6,
        "eltec-eng": 0,
        "nltk-movie_reviews": 2,
        "nltk-product_reviews": 2,
        "nltk-subjectivity-plot": 3,
        "masc": 2,
        "movies": 0,
    },
    "tiny_modern": {
        "classic-books": 0.008,
        "eltec-eng": 0,
        "100-english-novels": 0,
        "standard-ebooks": 0.05,
        "gitenberg-fairy-books": 0.05,
        "nltk-movie_reviews": 0.6,
        "nltk-subjectivity-plot": 2,
        "nltk-pros_cons": 0.15,
        "nltk-inaugural": 0,
        "nltk-state_union": 0.05,
        "tinystories": 0.3,
        "movies": 2,
    },
    "tiny_movies": {
        "classic-books": 0.002,
        "eltec-eng": 0,
        "100-english-novels": 0,
        "standard-ebooks": 0.01,
        "gitenberg-fairy-books": 0.03,
        "nltk-movie_reviews": 0.1,
        "nltk-product_reviews": 0.1,
        "nltk-subjectivity-plot": 0.5,
        "nltk-pros_cons": 0,
        "nltk-inaugural": 0,
        "nltk-state_union": 0,
        "masc": 0.1,
        "tinystories": 0.05,
        "movies": 2,
    },
}


def run(*words: object) -> None:
    """One command of the project, printed first. Exits as it does if it fails."""
    command = [str(word) for word in words]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command], cwd=HERE.parent).returncode
    if code:
        sys.exit(code)


def gather_texts(corpus: Path, folder: Path) -> None:
    """For each stage a folder with links to the corpus and, beside them, the sentences of `movies`: those of train, and
    as what is held out the corpus's own (for the first stage) or the sentences of valid (for the others).
    """
    files = sorted(path for pattern in ("*.jsonl", "*.jsonl.gz") for path in corpus.glob(pattern))
    if not files:
        raise UserError(f"--corpus {corpus} holds no .jsonl or .jsonl.gz file")
    sentences = dataset_folder("movies") / "sentences.jsonl"
    if not sentences.exists():
        raise UserError(f"{sentences} is missing: python datasets/movies.py")
    with open(sentences, encoding="utf-8") as file:  # by line feeds alone, which other ends of lines in texts are not
        rows = [json.loads(line) for line in file]
    for name in WEIGHTS:
        held_out = name != "tiny_corpus"
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
        for path in files:
            if not (held_out and path.name.startswith("valid")):
                (folder / name / path.name).symlink_to(path.resolve())
        for split in ("train", "valid") if held_out else ("train",):
            texts = [{"source": "movies", "text": row["text"]} for row in rows if row["split"] == split]
            with open(folder / name / f"{split}_movies.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(text) + "\n" for text in texts)


def prepare(texts: Path, name: str) -> None:
    """The token files of one stage."""
    weights = ",".join(f"{source}={weight:g}" for source, weight in WEIGHTS[name].items())
    run("datasets/corpus.py", "--input", texts / name, "--name", name, "--weights", weights, "--drop_words", UNWANTED)


def stages(layers: int, epochs: float, batch_size: int) -> dict[str, tuple[str, tuple[object, ...]]]:
    """The experiment of each stage and what the stage changes of it, in order."""
    return {
        "tiny_corpus": (
            "corpus",
            (
                *("--model.n_layer", layers, "--optimizer.epochs", epochs, "--optimizer.batch_size", batch_size),
                *("--optimizer.decay", 0, "--optimizer.warmup", 200),
                *("--optimizer.lr", 3e-3, "--optimizer.muon_lr", 1e-2),
                *("--validation.interval", 500, "--run.save_interval", 1000),
            ),
        ),
        "tiny_modern": (
            "corpus",
            (
                *("--optimizer.decay", 1, "--optimizer.warmup", 10),
                *("--optimizer.lr", 1.2e-3, "--optimizer.muon_lr", 4e-3),
                *("--validation.interval", 150, "--validation.rows", 0),
            ),
        ),
        "tiny_movies": (
            "movies",
            (
                *("--optimizer.epochs", 1, "--optimizer.lr", 2e-4, "--optimizer.warmup", 20),
                *("--optimizer.batch_size", 32, "--optimizer.sampled_vocabulary", 4096),
            ),
        ),
    }


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with the texts")
    parser.add_argument(
        "--output", type=Path, default=HERE / "tiny_new", help="model folder to write (default %(default)s)"
    )
    parser.add_argument("--epochs", type=float, default=10.0, help="of the first stage (default %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="blocks (default %(default)s)")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=512,
        help="rows of 128 tokens in a step of the first stage (default %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--again", action="store_true", help="begin anew")
    arguments = parser.parse_args()
    if not arguments.corpus.is_dir():
        raise UserError(f"--corpus {arguments.corpus} is no folder")
    gather_texts(arguments.corpus, HERE / "tiny_texts")
    initial: Path | None = None
    for name, (task, words) in stages(arguments.layers, arguments.epochs, arguments.batch_size).items():
        folder = HERE / name
        start = () if initial is None else ("--model.initial", initial)
        how = () if not folder.exists() else ("--run.overwrite",) if arguments.again else ("--run.resume",)
        if arguments.again or not (folder / "result.json").exists():
            prepare(HERE / "tiny_texts", name)
            data = ("--data.dataset", name, "--run.device", arguments.device)
            run("launch.py", "train_sft", task, name, *data, *start, *words, *how)
        initial = folder / "lm"
    assert initial is not None
    save_model(
        arguments.output, load_model(initial), dtype=torch.bfloat16, note={"stage": "train_sft", "task": "movies"}
    )
    print(f"\nthe model, in bfloat16: {arguments.output}")


if __name__ == "__main__":
    main()
