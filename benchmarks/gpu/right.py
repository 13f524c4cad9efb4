"""Is it right on this device? What tests hold on a CPU, on a GPU: numbers, bits, memory, ranks, whole stages."""

import copy
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.gpu.parts import GIB, Line, Part, Setting, attempt, check, line
from benchmarks.measure import ROOT
from benchmarks.ours import policy_trainer
from lm_human_preferences import train_policy, train_reward, train_sft
from lm_human_preferences.compute.distributed import World, generator_for, whole
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.queries import QueryStream
from lm_human_preferences.data.tasks import PolicyParams, QueryFormatter, TaskParams
from lm_human_preferences.foundation.configuration import apply_overrides
from lm_human_preferences.foundation.errors import Interrupted
from lm_human_preferences.language.captured import Captured, Outputs, decoding_graphs
from lm_human_preferences.language.compiled import compile_passes
from lm_human_preferences.language.gpt2 import GPT2, GPT2Config
from lm_human_preferences.language.model_folders import load_model
from lm_human_preferences.language.sampling import Sample, draw
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.ppo import PPOParams
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.runs.micro_batches import free_memory
from lm_human_preferences.runs.params import RunParams, start_computing
from lm_human_preferences.train_policy import PolicyTrainingParams, PPOTrainer, RewardsParams

TINY, QUERY, RESPONSE, BATCH = ROOT / "saved_models" / "tiny", 32, 24, 32
MINI = GPT2Config(n_vocab=300, n_ctx=64, n_embd=16, n_head=2, n_layer=2, padding_token=302)
STEPS_BEFORE_THE_STOP = 2


# --- a trainer on the small model that ships, whose logits are those of a trained one ---


def start_model(quick: bool) -> GPT2:
    """`tiny`; in a hurry a random one of a few hundred tokens."""
    return GPT2(MINI).initialise(generator_for(1, "benchmark/mini")) if quick else load_model(TINY)


def tiny_trainer(
    setting: Setting, bfloat16: bool, run: RunParams | None = None, world: World = World(), padded: bool = True
) -> PPOTrainer:
    """Policy training of `tiny` on random queries, padded to 32 tokens from 8 on."""
    task = TaskParams(
        query_length=QUERY,
        response_length=RESPONSE,
        truncate_token=13,
        truncate_after=8,
        policy=PolicyParams(temperature=0.7),
    )
    policy, reference, judge = (start_model(setting.quick) for _ in range(3))
    rewards, config = RewardModel(judge), policy.config
    rewards.head.initialise(generator_for(1, "benchmark/head"))
    random = np.random.default_rng(1)
    lengths = np.linspace(QUERY // 4, QUERY, 64).astype(int) if padded else np.full(64, QUERY)
    documents = [random.integers(0, config.n_vocab - 1, length).astype(np.uint16) for length in lengths]
    params = PolicyTrainingParams(
        task=task,
        rewards=RewardsParams(),
        run=run or RunParams(),
        ppo=PPOParams(total_episodes=100 * BATCH, batch_size=BATCH, nminibatches=2, lr=1e-4),
    )
    formatter = QueryFormatter([], [])
    return PPOTrainer(
        Policy(policy, formatter, task.policy.temperature),
        Policy(reference, formatter, task.policy.temperature),
        rewards,
        QueryStream(documents, length=QUERY, padding_token=config.padding_token),
        params,
        setting.precision(bfloat16),
        world=world,
    )


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: whole(p.detach()).clone() for name, p in trainer.policy.named_parameters()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over all weights but the keys' bias: its gradient is 0 in exact arithmetic, and Adam makes steps of noise."""
    return max(float((one[name] - other[name]).abs().max()) for name in one if not name.endswith("c_attn.bias"))


# --- numbers ---

RECORDED = (
    "learning/test_cycles.py",
    "language/test_gpt2.py::test_forward",
    "language/test_gpt2.py::test_last_states",
    "language/test_sampling.py::test_respond",
    "language/test_sampling.py::test_analyze",
    "language/test_sampling.py::test_top_k",
    "language/test_sampling.py::test_top_p",
    "language/test_sampling.py::test_truncated_sampling",
    "language/test_captured.py::test_on_a_gpu",
    "learning/test_ppo.py::test_whiten",
    "learning/test_ppo.py::test_compute_rewards",
    "learning/test_ppo.py::test_targets",
    "learning/test_ppo.py::test_loss_statistics_and_gradients",
)


def recorded(setting: Setting) -> Iterator[Line]:
    """The original's recorded values, by the tests that hold them on a CPU: float32, TF32 off."""
    chosen = RECORDED[1:2] if setting.quick else RECORDED
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "-rf"]
    ran = subprocess.run(
        [*command, *(f"tests/{name}" for name in chosen)],
        cwd=ROOT,
        env=os.environ | {"TEST_DEVICE": str(setting.device)},
        capture_output=True,
        text=True,
        timeout=setting.left,
    )
    (setting.output / "recorded.txt").write_text(ran.stdout + ran.stderr)
    summary = (ran.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    yield line("recorded values, float32", summary, ran.returncode == 0)
    for found in re.findall(r"^FAILED (\S+)(?: - (.*))?$", ran.stdout, re.MULTILINE)[:8]:
        yield line(f"recorded: {found[0].removeprefix('tests/')}", found[1][:160], False)
    if ran.returncode and not re.search("^FAILED", ran.stdout, re.MULTILINE):
        last = (ran.stderr.strip() or ran.stdout.strip() or "nothing").splitlines()[-1]
        yield line("recorded: pytest itself", last[:200], False)


def draws(setting: Setting) -> Iterator[Line]:
    """The draw against its definition in float64 on the host, at GPT-2's vocabulary."""
    rows, vocabulary = (8, 1000) if setting.quick else (256, 50257)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocabulary, generator=generator) * 4
    logits[:, 1:][torch.rand(rows, vocabulary - 1, generator=generator) < 0.3] = -1e10
    uniforms = torch.rand(rows, generator=generator)
    probabilities = torch.softmax(logits.double(), 1)
    ends = probabilities.cumsum(1)

    def compare() -> Line:
        tokens, logprobs = (x.cpu() for x in draw(logits.to(setting.device), uniforms.to(setting.device)))
        chosen = tokens[:, None]
        upper, size = ends.gather(1, chosen)[:, 0], probabilities.gather(1, chosen)[:, 0]
        beside = torch.maximum(uniforms - upper, upper - size - uniforms).clamp(min=0).max()
        off = (logprobs - size.log()).abs().max()
        check(bool((size > 0).all()), "a token without probability was drawn")
        check(float(beside) < 1e-5 and float(off) < 1e-4, f"outside by {beside:.1e}, log-probability off by {off:.1e}")
        return line("", f"outside its interval by at most {beside:.1e}, log-probability off by {off:.1e}", True)

    yield attempt("draw against float64", compare)
    torch.use_deterministic_algorithms(True)
    try:
        yield attempt("draw against float64, deterministic", compare)
    finally:
        torch.use_deterministic_algorithms(False)


def ratio(setting: Setting) -> Iterator[Line]:
    """The ratio before the first optimizer step is 1 but for rounding: the small model that ships, and 124M's shape."""
    for name, bfloat16, most in (("float32", False, 1e-5), ("bfloat16", True, 0.01)):

        def step(make: Callable[[bool], PPOTrainer], bfloat16: bool = bfloat16, most: float = most) -> Line:
            metrics, _ = make(bfloat16).step(0)
            found, sampling = metrics["ppo/ratio/std_before"], metrics.get("ppo/ratio/std_sampling")
            check(found < most, f"deviation {found:.2e}, must be below {most:g}")
            apart = f", sampling's against it {sampling:.1e}" if sampling is not None else ""
            return line("", f"deviation {found:.1e} (below {most:g}){apart}", True, metrics=metrics)

        case = setting.case("update", "124M", "style", 64)
        yield attempt(
            f"ratio before the first step, {name}, tiny", lambda step=step: step(partial(tiny_trainer, setting))
        )
        yield attempt(
            f"ratio before the first step, {name}, 124M random",
            lambda step=step, case=case: step(lambda low: policy_trainer(case, setting.precision(low))),
        )
        setting.clear()


def both_devices(setting: Setting) -> Iterator[Line]:
    """Log-probabilities and values of the small model here and on the host, in both precisions."""
    generator = torch.Generator().manual_seed(3)
    policy = Policy(start_model(setting.quick), QueryFormatter([], []), 0.7)
    config = policy.transformer.config
    queries = torch.randint(config.n_vocab - 1, (BATCH, QUERY), generator=generator)
    responses = torch.randint(config.n_vocab - 1, (BATCH, RESPONSE), generator=generator)
    queries[::2, QUERY // 2 :] = config.padding_token

    def logprobs(device: torch.device, bfloat16: bool) -> torch.Tensor:
        policy.to(device)
        with torch.no_grad(), Precision(device, bfloat16).autocast():
            return policy.analyze(queries.to(device), responses.to(device)).logprobs.cpu()

    host = torch.device("cpu")
    exact = logprobs(host, False)
    here = float((logprobs(setting.device, False) - exact).abs().max())
    yield line("float32 here against the host's", f"log-probabilities apart by {here:.1e} (below 1e-3)", here < 1e-3)
    low = {name: float((logprobs(d, True) - exact).std()) for name, d in (("here", setting.device), ("host", host))}
    yield line(
        "bfloat16 here against the host's",
        f"deviation from float32 {low['here']:.1e} here, {low['host']:.1e} on the host (at most twice that)",
        low["here"] <= 2 * low["host"] + 1e-6,
    )


# --- the same tokens, the same bits ---


def again(work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
    """What a CPU has in the place of a CUDA graph: the work itself, once more."""
    outputs = work()

    def replay() -> None:
        for old, new in zip(outputs, work(), strict=True):
            if old is not None and new is not None:
                old.copy_(new)

    return replay, outputs


def captured(setting: Setting) -> Iterator[Line]:
    """Captured decoding draws the tokens that plain decoding draws, also after the weights have changed."""
    for bfloat16 in (False, True):
        for padded in (False, True):
            name = f"captured decoding, {'bfloat16' if bfloat16 else 'float32'}{', padded' if padded else ''}"
            yield attempt(name, lambda b=bfloat16, p=padded: _captured(setting, b, p))


def _captured(setting: Setting, bfloat16: bool, padded: bool) -> Line:
    precision = setting.precision(bfloat16)
    trainer = tiny_trainer(setting, bfloat16, padded=padded)
    policy = trainer.policy
    graphs = decoding_graphs("cuda", "ddp") if setting.cuda else Captured(again)
    same = total = 0
    apart, seconds = 0.0, {"plain": 0.0, "captured": 0.0}
    for number in range(3):
        queries, uniforms = (x.to(setting.device) for x in (trainer.queries.batch(BATCH), trainer.uniforms(number)))
        drawn = {}
        for kind, use in (("plain", None), ("captured", graphs)):
            policy.captured = use
            setting.synchronise()
            started = time.perf_counter()
            with torch.no_grad(), precision.autocast():
                drawn[kind] = policy.respond(queries, uniforms)
            setting.synchronise()
            seconds[kind] = time.perf_counter() - started
        plain, ours = drawn["plain"], drawn["captured"]
        equal = plain.tokens == ours.tokens
        same, total = same + int(equal.all(1).sum()), total + BATCH
        rows = equal.all(1)
        apart = max(apart, float((plain.logprobs - ours.logprobs)[rows].abs().max()) if bool(rows.any()) else 1.0)
        with torch.no_grad():  # as an update does, in place
            for p in policy.parameters():
                p.mul_(1.01)
    least = total if not bfloat16 else 0.95 * total  # rounding may tip a draw where another kernel is chosen
    check(
        same >= least and apart < 0.05, f"{same} of {total} responses the same, log-probabilities apart by {apart:.1e}"
    )
    times = f"{1000 * seconds['plain']:.0f} ms plain, {1000 * seconds['captured']:.0f} captured"
    return line("", f"{same} of {total} responses the same, log-probabilities apart by {apart:.1e}; {times}", True)


def compiled_same(setting: Setting) -> Iterator[Line]:
    """`--run.compiled on`, captured too: the tokens drawn without it, and the ratio before the first step."""
    for name, bfloat16, most in (("float32", False, 1e-5), ("bfloat16", True, 0.01)):
        yield attempt(f"compiled, {name}", lambda b=bfloat16, m=most: _compiled(setting, b, m))
    if setting.cuda:
        yield attempt("train_policy --run.compiled on", lambda: _compiled_stage(setting))


def _compiled(setting: Setting, bfloat16: bool, most: float) -> Line:
    trainer = tiny_trainer(setting, bfloat16)
    queries, uniforms = (x.to(setting.device) for x in (trainer.queries.batch(BATCH), trainer.uniforms(0)))

    def work() -> tuple[Sample, torch.Tensor]:
        with torch.no_grad(), setting.precision(bfloat16).autocast():
            drawn = trainer.policy.respond(queries, uniforms)
            return drawn, trainer.policy.analyze(queries, (plain or drawn).tokens).logprobs

    plain: Sample | None = None
    plain, exact = work()
    compile_passes(True, setting.device, "inductor" if setting.cuda else "eager")
    try:
        trainer.policy.captured = decoding_graphs("cuda", "ddp") if setting.cuda else Captured(again)
        ours, found = work()
        metrics, _ = trainer.step(1)
    finally:
        compile_passes(False)
    same = int((plain.tokens == ours.tokens).all(1).sum())
    apart, off = float((exact - found).std()), metrics["ppo/ratio/std_before"]
    # in bfloat16 fewer intermediate numbers are rounded, and some responses become others
    check(bfloat16 or same >= 0.9 * BATCH, f"{same} of {BATCH} responses the same")
    check(apart < (0.02 if bfloat16 else 1e-4), f"log-probabilities deviate by {apart:.1e}")
    check(off < most, f"deviation of the ratio before the first step {off:.2e}, must be below {most:g}")
    shown = f"{same} of {BATCH} responses the same, log-probabilities deviate by {apart:.1e}"
    return line("", f"{shown}, the ratio before the first step by {off:.1e} (below {most:g})", True)


def _compiled_stage(setting: Setting) -> Line:
    import small
    from params import EXPERIMENTS

    with tempfile.TemporaryDirectory() as folder:
        world = small.make_world(Path(folder))
        for stage in ("train_reward", "train_policy"):
            words = small.reward_flags(world)
            if stage == "train_policy":
                words = small.policy_flags(world, world / "runs/train_reward/reward_model")
            given = dict(zip((word[2:] for word in words[::2]), words[1::2], strict=True))
            given |= {"run.device": str(setting.device), "run.compiled": "on"}
            started = time.perf_counter()
            STAGES[stage][0].train(apply_overrides(EXPERIMENTS[stage]["movies"](), given), "movies", stage)
    return line("", f"{time.perf_counter() - started:.1f} s with compiling", True)


def deterministic(setting: Setting) -> Iterator[Line]:
    """The same run twice has the same bits with --run.deterministic; without it, that is said."""

    def twice(bfloat16: bool, must: bool) -> Line:
        results = []
        for _ in range(2):
            trainer = tiny_trainer(setting, bfloat16)
            for step in range(2):
                trainer.step(step)
            results.append(weights(trainer))
        differing = [name for name, value in results[0].items() if not torch.equal(value, results[1][name])]
        shown = "the same bits twice" if not differing else f"{len(differing)} of {len(results[0])} tensors differ"
        check(not (must and differing), f"{shown}, {differing[:1]} first")
        return line("", shown, True if must else None)

    yield attempt("without deterministic, bfloat16", lambda: twice(True, False))
    run = RunParams(device=str(setting.device), deterministic=True)
    start_computing(run)
    try:
        for name, bfloat16 in (("float32", False), ("bfloat16", True)):
            yield attempt(f"deterministic, {name}", lambda b=bfloat16: twice(b, True))
    finally:
        torch.use_deterministic_algorithms(False)


# --- memory ---


def memory(setting: Setting) -> Iterator[Line]:
    """Micro-batches are halved where memory really runs out, and a step then fits."""
    case = setting.case("update", "124M", "style", 512)
    trainer = policy_trainer(case, setting.precision(True), RunParams(), epochs=1)
    chosen = trainer.training.micro_batches
    if not setting.cuda:
        yield line("micro-batches when memory runs out", f"only a GPU raises it; chosen here: {chosen.describe()}")
        return
    total = torch.cuda.mem_get_info(setting.device)[1]
    allowed = torch.cuda.memory_allocated(setting.device) + 6 * GIB
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        trainer.training.try_micro_batches(trainer.memory_probes())
        found = trainer.training.micro_batches
        setting.clear()
        trainer.step(0)
        peak = torch.cuda.max_memory_reserved(setting.device) / GIB
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    check(found.training < chosen.training, f"nothing was halved: {found.describe()} in {allowed / GIB:.1f} GiB")
    yield line(
        f"micro-batches in {allowed / GIB:.1f} GiB",
        f"{chosen.describe()} -> {found.describe()}; a step took {peak:.1f} GiB",
        True,
    )
    free = free_memory(setting.device) / GIB
    yield line("free memory, as a run counts it", f"{free:.1f} of {total / GIB:.1f} GiB", free > 0)


# --- ranks ---


class LoneRank(int):
    """A world size of 1 that takes the way of several: messages, DDP, FSDP."""

    def __gt__(self, other: int) -> bool:
        return True if other == 1 else int(self) > other

    def __eq__(self, other: object) -> bool:
        return False if other == 1 else int(self) == other

    def __hash__(self) -> int:
        return hash(int(self))


def ranks(setting: Setting) -> Iterator[Line]:
    """One rank in a process group of its own takes the step that a run without one takes."""
    alone = tiny_trainer(setting, False, RunParams(micro_batch=8))
    metrics, rollout = alone.step(0)
    expected = weights(alone)
    backend = "nccl" if setting.cuda else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            for sharding in ("ddp", "fsdp"):

                def step(sharding: str = sharding) -> Line:
                    world = World(0, LoneRank(1), 0, 1, setting.device.type)
                    run = RunParams(micro_batch=8, sharding=sharding)
                    trainer = tiny_trainer(setting, False, run, world)
                    check(trainer.parallel.sharded == (sharding == "fsdp"), "it is not spread as wanted")
                    found, drawn = trainer.step(0)
                    off = largest_difference(weights(trainer), expected)
                    same = float((drawn.responses == rollout.responses).all(1).float().mean())
                    loss = abs(found["ppo/loss/total"] - metrics["ppo/loss/total"])
                    check(
                        same > 0.9 and off < 1e-3 and loss < 1e-3, f"weights {off:.1e} apart, {same:.0%} of responses"
                    )
                    return line(
                        "", f"responses {same:.0%} the same, weights apart by {off:.1e}, loss by {loss:.1e}", True
                    )

                yield attempt(f"{sharding} on one {backend} rank", step)
        finally:
            dist.destroy_process_group()


# --- whole stages ---

STAGES = {  # the module, its trainer, its result
    "train_sft": (train_sft, train_sft.SFTTrainer, "lm"),
    "train_reward": (train_reward, train_reward.RewardTrainer, "reward_model"),
    "train_policy": (train_policy, PPOTrainer, "policy"),
}


def stages(setting: Setting) -> Iterator[Line]:
    """Each stage from start to end on a very small model, and again with a stop and a resume in the middle."""
    import small
    from params import EXPERIMENTS

    with tempfile.TemporaryDirectory() as folder:
        world = small.make_world(Path(folder))
        words = {
            "train_sft": small.sft_flags(world),
            "train_reward": small.reward_flags(world),
            "train_policy": small.policy_flags(world, world / "runs/train_reward/reward_model"),
        }
        for stage in STAGES:

            def both(stage: str = stage) -> Line:
                given = dict(zip((word[2:] for word in words[stage][::2]), words[stage][1::2], strict=True))
                given |= {"run.device": str(setting.device), "run.deterministic": "on", "run.save_interval": "2"}
                params = apply_overrides(EXPERIMENTS[stage]["movies"](), given)
                return _stopped_and_resumed(stage, params, world / "runs")

            yield attempt(f"{stage}, whole and resumed", both)
        torch.use_deterministic_algorithms(False)


def _stopped_and_resumed(stage: str, params: Any, runs: Path) -> Line:
    """The stage as `stage`, and as `stage_stopped` with a stop; their weights must be the same bits."""
    module, _, result = STAGES[stage]
    started = time.perf_counter()
    module.train(copy.deepcopy(params), "movies", stage)
    seconds = time.perf_counter() - started
    name = f"{stage}_stopped"
    with _stop_after(stage, STEPS_BEFORE_THE_STOP):
        try:
            module.train(copy.deepcopy(params), "movies", name)
            check(False, "the run did not stop")
        except Interrupted:
            pass
    resumed = copy.deepcopy(params)
    resumed.run.resume = True
    module.train(resumed, "movies", name)
    one, other = ((runs / run / result / "model.safetensors").read_bytes() for run in (stage, name))
    check(one == other, "the resumed run has other weights than the whole one")
    return line("", f"{seconds:.1f} s; stopped and resumed, the same bits", True)


class _stop_after:
    """Inside the block this process gets SIGTERM in that step of the stage."""

    def __init__(self, stage: str, steps: int):
        self.owner, self.steps = STAGES[stage][1], steps

    def __enter__(self) -> None:
        self.step, count = self.owner.step, iter(range(1, 10**9))

        def stopping(trainer: Any, *args: Any) -> Any:
            if next(count) == self.steps:
                signal.raise_signal(signal.SIGTERM)
            return self.step(trainer, *args)

        self.owner.step = stopping

    def __exit__(self, *_: object) -> None:
        self.owner.step = self.step


PARTS = [
    Part("recorded", "right", 25, recorded),
    Part("draws", "right", 4, draws),
    Part("both_devices", "right", 5, both_devices),
    Part("ratio", "right", 15, ratio),
    Part("captured", "right", 8, captured),
    Part("compiled_same", "right", 60, compiled_same),
    Part("deterministic", "right", 8, deterministic),
    Part("ranks", "right", 10, ranks),
    Part("memory", "right", 12, memory),
    Part("stages", "right", 20, stages),
]
