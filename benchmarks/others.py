"""What a user would use instead: transformers' generate, TRL's PPO trainer, a plain PyTorch reward step. Random
weights, nothing downloaded.
"""

import os
import tempfile

import torch
import torch.nn.functional as F

from benchmarks.cases import Case
from benchmarks.ours import SEED, choices, query_documents
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.tasks import QueryFormatter
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import get_encoding

os.environ["HF_HUB_OFFLINE"] = "1"
INSTALL = "pip install -r requirements-bench.txt, or measure ours alone with --alone"


def make(case: Case, precision: Precision):
    """A function that does the case's work once. UserError if its package is missing."""
    return {"transformers": _generate, "trl": _trl, "plain": _plain_reward}[case.subject](case, precision)


def _model_config(case: Case, **more):
    try:
        from transformers import GPT2Config
    except ImportError:
        raise UserError(f"transformers is missing: {INSTALL}") from None
    c = case.config()
    return GPT2Config(
        vocab_size=c.n_vocab,
        n_positions=c.n_ctx,
        n_embd=c.n_embd,
        n_layer=c.n_layer,
        n_head=c.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=c.n_vocab - 1,
        eos_token_id=None,
        **more,
    )


def _contexts(case: Case) -> list[list[int]]:
    """The policy's contexts, prefix and suffix included, without padding."""
    task = case.task_params()
    formatter = QueryFormatter.of(task, get_encoding("gpt2"))
    return [
        formatter(torch.from_numpy(document.astype("int64"))[None])[0].tolist()
        for document in query_documents(case, task.query_length)
    ]


def _left_padded(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask [B, T], padded on the left, as generation wants it."""
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, mask


def _generate(case: Case, precision: Precision):
    """Sampling with the cache, the same number of tokens for every row."""
    config = _model_config(case)
    from transformers import GPT2LMHeadModel

    torch.manual_seed(SEED)
    model, task = GPT2LMHeadModel(config).to(precision.device).eval(), case.task_params()
    tokens, mask = _left_padded(_contexts(case), precision.device)
    R = task.response_length

    def work():
        with torch.no_grad(), precision.autocast():
            model.generate(
                tokens,
                attention_mask=mask,
                do_sample=True,
                temperature=task.policy.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=R,
                min_new_tokens=R,
                use_cache=True,
                pad_token_id=0,
            )

    return work


def _plain_reward(case: Case, precision: Precision):
    """All rows of the batch through GPT-2, float32, padding masked; PyTorch's Adam."""
    config = _model_config(case)
    from transformers import GPT2Model

    torch.manual_seed(SEED)
    model, head, padding = (
        GPT2Model(config).to(precision.device),
        torch.nn.Linear(config.n_embd, 1).to(precision.device),
        case.config().padding_token,
    )
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-6)
    labels = choices(case).to(precision.device)

    def work():
        rows = torch.cat([labels.queries.repeat_interleave(4, 0), labels.responses.flatten(0, 1)], dim=1)
        real = rows != padding
        hidden = model(
            rows.where(real, 0), attention_mask=real, position_ids=(real.cumsum(1) - 1).clamp(min=0)
        ).last_hidden_state
        rewards = head(hidden[:, -1])[:, 0].view(-1, 4)
        optimizer.zero_grad()
        F.cross_entropy(rewards, labels.target).backward()
        optimizer.step()

    return work


def _trl(case: Case, precision: Precision):
    """TRL's PPO trainer: one update a call. Its value network has a trunk of its own, as its examples have it."""
    try:
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        from datasets import Dataset
    except ImportError:
        raise UserError(f"trl is missing: {INSTALL}") from None
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

    task, c = case.task_params(), case.config()
    rows = _contexts(case)
    width = max(map(len, rows))
    folder = tempfile.TemporaryDirectory()
    args = PPOConfig(
        output_dir=folder.name,
        per_device_train_batch_size=case.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        local_rollout_forward_batch_size=case.batch,
        total_episodes=case.batch,
        num_ppo_epochs=4,
        num_sample_generations=0,
        response_length=task.response_length,
        temperature=task.policy.temperature,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        bf16=precision.bfloat16,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=precision.device.type == "cpu",
        seed=SEED,
    )
    torch.manual_seed(SEED)

    def language_model() -> GPT2LMHeadModel:
        return GPT2LMHeadModel(_model_config(case))

    def scorer() -> GPT2ForSequenceClassification:
        return GPT2ForSequenceClassification(_model_config(case, num_labels=1, pad_token_id=c.n_vocab))

    trainer = PPOTrainer(
        args=args,
        processing_class=_tokens_only(c.n_vocab),
        model=language_model(),
        ref_model=language_model(),
        reward_model=scorer(),
        value_model=scorer(),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        eval_dataset=Dataset.from_dict({"input_ids": rows}),
        data_collator=lambda batch: {
            "input_ids": torch.tensor([[c.n_vocab] * (width - len(r["input_ids"])) + r["input_ids"] for r in batch])
        },
    )

    def work(folder=folder):  # the folder lives as long as the work
        trainer.train()

    return work


def _tokens_only(n_vocab: int):
    """A tokenizer that encodes nothing but has the special tokens that TRL asks for."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<|endoftext|>": n_vocab - 1, "<|pad|>": n_vocab}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<|pad|>")),
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        unk_token="<|pad|>",
    )
