"""A sequence classifier of Hugging Face's as a judge, of a text or of a (query, response) pair: `hf:`, as
classifier_spec.py reads it.

What was saved by others fits together in many ways, or does not. Whatever is wrong with a classifier is said when it is
loaded, in one line: a run must not end at its hundredth step because of a long text.
"""

import contextlib
import os
import pickle
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lm_human_preferences.compute.torchrun import is_first_to_say
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.judging.classifier_spec import FORMS, LOG_ODDS, LOGIT, ClassifierSpec, why_pairs
from lm_human_preferences.judging.probability_rewards import SHAPES

MICRO_BATCH = 64  # texts in memory at once
USUAL_LENGTH = 512  # tokens, where neither the classifier nor its tokenizer sets a limit (relative positions)
SENTENCE_PIECES = ("spm.model", "spiece.model", "sentencepiece.bpe.model")  # what such tokenizers are called
LONGEST_TRIED = 8192  # tokens; tables of positions are not longer, and rotary positions have no table


class HFClassifier:
    """Scores responses by one of a classifier's outputs.

    One output: the score itself; several: a label's log-odds, log p / (1 − p), p being its probability. `:logit` takes
    the output as it is, `:prob` and the other names of probability_rewards.py a function of p.
    """

    def __init__(self, spec: str, device: torch.device):
        """`spec` is what follows `hf:` (classifier_spec.py). Raises UserError in one line for what cannot score texts:
        no classifier, no tokenizer, no such label, or parts that do not fit together.
        """
        self.spec = ClassifierSpec.parse(spec)
        self.path = str(find_path(self.spec.path)) if self.spec.path else self.spec.path
        self.device = device
        try:
            import transformers
        except ImportError:
            raise UserError(f"hf:{spec} needs the package transformers: pip install transformers") from None
        transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # theirs has no annotations
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs has no annotations
        self.model = self._load_model(transformers)
        self.tokenizer = self._load_tokenizer(transformers)
        self.pair = self._reads_pairs(transformers)
        self.label = self._label()
        self._agree_on_padding()
        self.longest = self._longest()
        self.model.to(device)
        self.micro_batch = MICRO_BATCH
        self._try(["", "A film:", "A longer query"], ["", " a good one.", ", which is not bad."])

    def _load_model(self, transformers: Any) -> Any:
        model, report = self._from_pretrained(transformers)
        labels = {stored[0] for _, stored, _ in report["mismatched_keys"]}
        if len(labels) == 1 and not {"id2label", "num_labels", "_num_labels"} & self._config(transformers).keys():
            model, report = self._from_pretrained(transformers, num_labels=labels.pop())  # as the weights have it
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"]))
            raise UserError(f"hf:{self.path} is not a trained classifier: its weights lack {missing}")
        for name, stored, expected in sorted(report["mismatched_keys"]):
            raise UserError(
                f"hf:{self.path}: {name} has shape {list(stored)}, by config.json it has {list(expected)}; they do not "
                "belong together"
            )
        return model.float().eval().requires_grad_(False)

    def _from_pretrained(self, transformers: Any, **settings: Any) -> Any:
        """The classifier and transformers' report of what fitted. Weights are read from safetensors; where there are
        none, from pytorch_model.bin by torch's reader of tensors alone (`weights_only`).
        """
        try:
            with _without_conversion():
                return transformers.AutoModelForSequenceClassification.from_pretrained(
                    self.path,
                    trust_remote_code=False,
                    weights_only=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **settings,
                )
        except pickle.UnpicklingError:
            raise UserError(
                f"hf:{self.path}: pytorch_model.bin is damaged or holds more than tensors: it is not read, for reading "
                "the rest could execute code"
            ) from None
        except Exception as error:  # of many kinds: missing files, no network, unknown architectures
            raise UserError(f"hf:{self.path} cannot be loaded as a sequence classifier: {first_line(error)}") from None

    def _config(self, transformers: Any) -> dict[str, Any]:
        """config.json as it was written."""
        found: dict[str, Any] = transformers.PreTrainedConfig.get_config_dict(self.path)[0]
        return found

    def _load_tokenizer(self, transformers: Any) -> Any:
        """Its own tokenizer. transformers makes up an empty one for a folder that has none, which reads every text as
        nothing but unknown words; hence the look into the vocabulary.
        """
        mend = (
            "save the tokenizer that it was trained with there, too: "
            f"AutoTokenizer.from_pretrained(THAT_MODEL).save_pretrained({str(self.path)!r})"
        )
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self.path, padding_side="right", trust_remote_code=False, **self._truncation()
            )
        except Exception as error:  # of many kinds, as above
            pieces = next((name for name in SENTENCE_PIECES if self._file(transformers, name)), None)
            if pieces and find_spec("sentencepiece") is None:
                mend = f"{pieces} needs a package: pip install sentencepiece protobuf"
            raise UserError(f"hf:{self.path}: its tokenizer cannot be loaded ({first_line(error)}); {mend}") from None
        words = set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)
        if len(words) < 2:  # SentencePiece's empty vocabulary holds a mark for spaces
            raise UserError(f"hf:{self.path} has no tokenizer; {mend}")
        return tokenizer

    def _reads_pairs(self, transformers: Any) -> bool:
        """Whether query and response are two texts to it: as asked for, else as its configuration or card says, which
        is said once.
        """
        if self.spec.pair is not None:
            return self.spec.pair
        why = why_pairs(self._config(transformers), self._card(transformers))
        if why and is_first_to_say(
            line := f"hf:{self.path} reads query and response as a pair, for {why}; ?text joins"
        ):
            print(line)
        return why is not None

    def _card(self, transformers: Any) -> str:
        """Its README.md; "" without one."""
        path = self._file(transformers, "README.md")
        return Path(path).read_text(encoding="utf-8", errors="replace") if path else ""

    def _file(self, transformers: Any, name: str) -> str | None:
        """Where a file of its folder lies, fetched where the folder is on the hub; None if there is none."""
        try:
            found: str | None = transformers.utils.cached_file(
                self.path, name, _raise_exceptions_for_missing_entries=False
            )
            return found
        except OSError:  # no network, or a folder without it
            return None

    def _label(self) -> int | None:
        """The output that counts; None if there is but one."""
        labels: dict[int, str] = {index: str(label) for index, label in self.model.config.id2label.items()}
        wanted = self.spec.label.lower()
        found = [
            index for index, label in labels.items() if (label.lower() == wanted if wanted else "pos" in label.lower())
        ]
        if not found and wanted.isdecimal() and int(wanted) in labels:
            found = [int(wanted)]
        if len(labels) == 1 and (found or not wanted):
            return None
        if len(found) != 1:
            what = (
                f"has no label {self.spec.label}"
                if wanted
                else f"has {len(found) or 'no'} label{'s' * (len(found) != 1)} with 'pos' in the name"
            )
            forms = f" (after the colon: one of {', '.join(FORMS)})" if ":" in wanted else ""
            raise UserError(
                f"hf:{self.path} {what}{forms}; choose one by name or number with hf:{self.path}#LABEL: "
                f"{', '.join(labels.values())}"
            )
        return found[0]

    def _truncation(self) -> dict[str, str]:
        return {} if self.spec.truncate == "own" else {"truncation_side": self.spec.truncate}

    def _agree_on_padding(self) -> None:
        """The tokenizer pads, and classifiers after GPT-2 look for the last token before its padding: by the
        tokenizer's token, whatever their own configuration says.
        """
        if self.tokenizer.pad_token_id is None:
            if self.tokenizer.eos_token_id is None:
                raise UserError(
                    f"hf:{self.path}: its tokenizer has neither a padding nor an end token; "
                    "give it one and save it again"
                )
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._check_vocabulary(self.tokenizer.pad_token_id)
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def _check_vocabulary(self, highest: int) -> None:
        known = getattr(self._embeddings(), "num_embeddings", None)
        if known is not None and highest >= known:
            raise UserError(
                f"hf:{self.path}: its tokenizer gives token {highest}, but the model has {known} tokens; "
                "they do not belong together"
            )

    def _embeddings(self) -> Any:
        """Those of its tokens; None for a model without a table of them."""
        try:
            return self.model.get_input_embeddings()
        except NotImplementedError:  # CANINE reads characters by their numbers
            return None

    def _longest(self) -> int:
        """The largest number of tokens that the classifier has places for.

        What configurations say is only where the search begins: RoBERTa's relatives cannot use the first places of
        their tables, others call them by other names, and a tokenizer without a limit says 10^30.
        """
        places = getattr(self.model.config, "max_position_embeddings", None)
        if not isinstance(places, int) or places < 1:  # XLNet says -1
            places = USUAL_LENGTH
        longest = max(1, min(int(self.tokenizer.model_max_length), places))
        if longest > LONGEST_TRIED or self._has_places_for(longest):
            return longest
        fits, too_long = 0, longest
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            fits, too_long = (middle, too_long) if self._has_places_for(middle) else (fits, middle)
        if not fits:
            raise UserError(f"hf:{self.path} cannot score even one token; is its configuration that of its weights?")
        return fits

    @torch.no_grad()
    def _has_places_for(self, tokens: int) -> bool:
        """Whether the embeddings of this many tokens can be computed; the blocks after them are not run. On the CPU: a
        GPU that is given a place outside a table is lost to the process.
        """
        blocks = next((part for part in self.model.modules() if isinstance(part, torch.nn.ModuleList)), None)
        hook = None if blocks is None or not len(blocks) else blocks[0].register_forward_pre_hook(_stop)
        padding = {self.tokenizer.pad_token_id, getattr(self._embeddings(), "padding_idx", None)}
        token = min({0, 1, 2} - padding)  # padding has no place
        try:
            self.model(
                input_ids=torch.full((1, tokens), token), attention_mask=torch.ones(1, tokens, dtype=torch.int64)
            )
        except _Stop:
            return True
        except (IndexError, RuntimeError):  # beyond a table, or of a buffer's length
            return False
        except Exception:  # something else is wrong with these tokens: they are made up, real texts will show it
            return True
        finally:
            if hook is not None:
                hook.remove()
        return True

    def _try(self, queries: list[str], responses: list[str]) -> None:
        """Score texts of several lengths, together and alone. Where that differs, padding counts for the classifier
        (XLNet scores the last place, whatever stands there), so each text is scored alone.
        """
        together = self._logits(queries, responses)
        alone = torch.cat([self._logits([one], [other]) for one, other in zip(queries, responses, strict=True)])
        if not torch.allclose(together, alone, rtol=1e-3, atol=1e-4):
            self.micro_batch = 1

    def score(self, queries: list[str], responses: list[str]) -> list[float]:
        """A score for each response. Texts longer than the classifier's context lose their beginning, or what
        `?truncate=` says; of a pair the longer of the two does. UserError if it cannot.
        """
        scores: list[float] = []
        for start in range(0, len(queries), self.micro_batch):
            part = slice(start, start + self.micro_batch)
            scores += self._scores(self._logits(queries[part], responses[part])).tolist()
        return [shape(p) for p in scores] if (shape := SHAPES.get(self.spec.form)) else scores

    @torch.no_grad()
    def _logits(self, queries: list[str], responses: list[str]) -> torch.Tensor:
        """float32 [B, labels], on the CPU. UserError if they cannot be had."""
        try:
            batch = self._encode(queries, responses)
            self._check_vocabulary(int(batch["input_ids"].max()))
            logits: torch.Tensor = self.model(**batch.to(self.device)).logits.float().cpu()
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever it is, it is not ours
            raise UserError(
                f"hf:{self.path} cannot score texts: {type(error).__name__}: {first_line(error)}"
            ) from error
        if not logits.isfinite().all():
            raise UserError(
                f"hf:{self.path} gives a text a score that is not a finite number; are its weights damaged?"
            )
        return logits

    def _encode(self, queries: list[str], responses: list[str]) -> Any:
        """Padded tokens, as a BatchEncoding; a text without any token is one padding token that counts."""
        read = [self.spec.read(query) for query in queries]
        texts = (read, responses) if self.pair else ([one + other for one, other in zip(read, responses, strict=True)],)
        rows = self.tokenizer(*texts, truncation=True, max_length=self.longest)
        for i, row in enumerate(rows["input_ids"]):
            if not row:
                for name, values in rows.items():
                    values[i] = [{"input_ids": self.tokenizer.pad_token_id, "attention_mask": 1}.get(name, 0)]
        return self.tokenizer.pad(rows, return_tensors="pt")

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        """logits float32 [B, labels] -> [B]: the label's output, its log-odds, or its probability for the other
        forms.
        """
        own = logits[:, self.label or 0]
        if self.spec.form == LOGIT:
            return own
        alone = self.label is None or self.model.config.problem_type == "multi_label_classification"
        if not alone:  # else the label has a sigmoid of its own, whose log-odds the output is
            others = [index for index in range(logits.shape[1]) if index != self.label]
            own = own - logits[:, others].logsumexp(1)
        return own if self.spec.form == LOG_ODDS else own.double().sigmoid()


@contextlib.contextmanager
def _without_conversion() -> Iterator[None]:
    """transformers asks the hub to convert what is not in safetensors, in a thread of its own; not in here."""
    name = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


class _Stop(Exception):
    """The embeddings are there."""


def _stop(*_: object) -> None:
    raise _Stop


def first_line(error: BaseException) -> str:
    """The first line of its message."""
    return (str(error).strip().splitlines() or ["no message"])[0]
