"""A sequence classifier of Hugging Face's as a judge: `hf:PATH_OR_NAME[#label]`.

What was saved by others fits together in many ways, or does not. Whatever is wrong with a classifier is said when it is
loaded, in one line: a run must not end at its hundredth step because of a long text.
"""

import math
from typing import Any

import torch

from lm_human_preferences.foundation.errors import UserError

MICRO_BATCH = 64  # texts in memory at once
USUAL_LENGTH = 512  # tokens, where neither the classifier nor its tokenizer sets a limit (relative positions)
LONGEST_TRIED = 8192  # tokens; tables of positions are not longer, and rotary positions have no table


class HFClassifier:
    """One output: the score itself; several: the log-odds of one label, log p / (1 - p)."""

    def __init__(self, spec: str, device: torch.device):
        """`spec` is PATH_OR_NAME[#label]. Raises UserError in one line for what cannot score texts: no classifier, no
        tokenizer, no such label, or parts that do not fit together.
        """
        self.path, _, wanted = spec.partition("#")
        self.device = device
        try:
            import transformers
        except ImportError:
            raise UserError(f"hf:{spec} needs the package transformers: pip install transformers") from None
        transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # theirs has no annotations
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs has no annotations
        self.model = self._load_model(transformers)
        self.tokenizer = self._load_tokenizer(transformers)
        self.label = self._label(wanted)
        self._agree_on_padding()
        self.longest = self._longest()
        self.model.to(device)
        self.micro_batch = MICRO_BATCH
        self._try(["", "A good one.", "A longer one, which is not bad."])

    def _load_model(self, transformers: Any) -> Any:
        try:
            model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                self.path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # of many kinds: missing files, no network, unknown architectures
            raise UserError(f"hf:{self.path} cannot be loaded as a sequence classifier: {first_line(error)}") from None
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"]))
            raise UserError(f"hf:{self.path} is not a trained classifier: its weights lack {missing}")
        return model.float().eval().requires_grad_(False)

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
                self.path, truncation_side="left", padding_side="right", trust_remote_code=False
            )
        except Exception as error:  # of many kinds, as above
            raise UserError(f"hf:{self.path}: its tokenizer cannot be loaded ({first_line(error)}); {mend}") from None
        words = set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)
        if len(words) < 2:  # SentencePiece's empty vocabulary holds a mark for spaces
            raise UserError(f"hf:{self.path} has no tokenizer; {mend}")
        return tokenizer

    def _label(self, wanted: str) -> int | None:
        """The output that counts; None if there is but one."""
        labels: dict[int, str] = {index: str(label) for index, label in self.model.config.id2label.items()}
        found = [
            index
            for index, label in labels.items()
            if (label.lower() == wanted.lower() if wanted else "pos" in label.lower())
        ]
        if len(labels) == 1 and (found or not wanted):
            return None
        if len(found) != 1:
            what = (
                f"has no label {wanted}"
                if wanted
                else f"has {len(found) or 'no'} label{'s' * (len(found) != 1)} with 'pos' in the name"
            )
            raise UserError(
                f"hf:{self.path} {what}; choose one with hf:{self.path}#LABEL: {', '.join(labels.values())}"
            )
        return found[0]

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

    def _try(self, texts: list[str]) -> None:
        """Score texts of several lengths, together and alone. Where that differs, padding counts for the classifier
        (XLNet scores the last place, whatever stands there), so each text is scored alone.
        """
        together = torch.tensor(self.rate(texts))
        alone = torch.tensor([self.rate([text])[0] for text in texts])
        if not torch.allclose(together, alone, rtol=1e-3, atol=1e-4):
            self.micro_batch = 1

    @torch.no_grad()
    def rate(self, texts: list[str]) -> list[float]:
        """A score each; texts longer than the classifier's context lose their beginning. UserError if it cannot."""
        scores: list[float] = []
        for start in range(0, len(texts), self.micro_batch):
            try:
                batch = self._encode(texts[start : start + self.micro_batch])
                self._check_vocabulary(int(batch["input_ids"].max()))
                scores += self._log_odds(self.model(**batch.to(self.device)).logits).tolist()
            except (UserError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # whatever it is, it is not ours
                raise UserError(
                    f"hf:{self.path} cannot score texts: {type(error).__name__}: {first_line(error)}"
                ) from error
        if not all(map(math.isfinite, scores)):
            raise UserError(
                f"hf:{self.path} gives a text a score that is not a finite number; are its weights damaged?"
            )
        return scores

    def _encode(self, texts: list[str]) -> Any:
        """Padded tokens, as a BatchEncoding; a text without any token is one padding token that counts."""
        rows = self.tokenizer(texts, truncation=True, max_length=self.longest)
        for i, row in enumerate(rows["input_ids"]):
            if not row:
                for name, values in rows.items():
                    values[i] = [{"input_ids": self.tokenizer.pad_token_id, "attention_mask": 1}.get(name, 0)]
        return self.tokenizer.pad(rows, return_tensors="pt")

    def _log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        """logits float32 [B, labels] -> scores [B]."""
        if self.label is None or self.model.config.problem_type == "multi_label_classification":
            return logits[:, self.label or 0]  # there each label has a sigmoid of its own
        others = [index for index in range(logits.shape[1]) if index != self.label]
        return logits[:, self.label] - logits[:, others].logsumexp(1)


class _Stop(Exception):
    """The embeddings are there."""


def _stop(*_: object) -> None:
    raise _Stop


def first_line(error: BaseException) -> str:
    """The first line of its message."""
    return (str(error).strip().splitlines() or ["no message"])[0]
