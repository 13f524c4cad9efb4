"""The experiments as data: one entry per stage and task, assembled from the parameter dataclasses of the library."""

from collections.abc import Callable

from lm_human_preferences.train_sft import DataParams, ModelParams, SFTOptimizerParams, SFTParams, ValidationParams


def sft_corpus() -> SFTParams:
    return SFTParams(
        data=DataParams(dataset="corpus", rows="packed", block=128),
        optimizer=SFTOptimizerParams(batch_size=32, lr=1.5e-3, warmup=100, weight_decay=0.1, sampled_vocabulary=4096),
        validation=ValidationParams(interval=200, rows=128),
    )


EXPERIMENTS: dict[str, dict[str, Callable]] = {
    "train_sft": {"corpus": sft_corpus},
}
