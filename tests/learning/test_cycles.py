"""Whole procedures against the original's: Adam, reward training from labels to last normalisation, two complete PPO
steps.

Where the original sampled, the recorded tokens are drawn again through uniforms in the middle of their intervals.
ORIGINAL details 45-57, 59-77; hazards 4, 7-9, 13-19, 21.
"""

import numpy as np
import pytest
import torch

from lm_human_preferences.compute.optim import TensorFlowAdam
from lm_human_preferences.data.labels import LabelBatch, label_type
from lm_human_preferences.language.tensorflow_checkpoints import original_name
from lm_human_preferences.learning.label_losses import label_losses, label_statistics
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.train_policy import PPOTrainer
from lm_human_preferences.train_reward import label_rewards

from conftest import Goldens, tensor
from recorded import REWARD_EXTRA, loss_labels, make_reward_model, make_reward_trainer, ppo_trainer, uniforms_for


def named_values(model: RewardModel, gradients: bool = False) -> dict[str, np.ndarray]:
    """The reward model's parameters (or gradients) by their original names."""
    pairs = [(original_name(name), p) for name, p in model.transformer.named_parameters()]
    pairs += list(zip(REWARD_EXTRA, (model.head.weight, model.head.bias, model.gain, model.bias), strict=True))
    return {f"reward_model/{name}": (p.grad if gradients else p).detach().numpy() for name, p in pairs}


def assert_weights(values: dict[str, np.ndarray], recorded: dict[str, np.ndarray], prefix: str, atol: float = 3e-6):
    expected = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(
            values[name].reshape(-1),
            value.reshape(-1),
            rtol=0,
            atol=3e-5 if "reward_norm" in name else atol,
            err_msg=name,
        )


# --- reward model and label losses ---


def test_rewards(goldens):
    g, model = goldens("reward"), make_reward_model(goldens("weights"))
    queries, responses = tensor(g["queries"]), tensor(g["responses"])
    with torch.no_grad():
        np.testing.assert_allclose(model(queries, responses), g["rewards"], rtol=0, atol=5e-5)
        np.testing.assert_allclose(model(queries, responses), g["trained_reward_model"], rtol=0, atol=5e-5)
        np.testing.assert_allclose(model(queries, tensor(g["loss/sample0"])), g["rewards_swapped"], rtol=0, atol=5e-5)
        model.reset_scale()
        np.testing.assert_allclose(model(queries, responses), g["rewards_reset"], rtol=0, atol=5e-5)
        model.set_scale(*g["set_norm/args"].tolist())
        np.testing.assert_allclose([float(model.gain), float(model.bias)], g["set_norm/gain_bias"], rtol=0, atol=3e-5)
        np.testing.assert_allclose(model(queries, responses), g["set_norm/rewards"], rtol=0, atol=5e-5)
    with pytest.raises(ValueError, match="reset_scale"):
        model.set_scale(0.0, 1.0, 0.0, 1.0)


@pytest.mark.parametrize("case", ["a", "b", "c", "bc"])
def test_reward_head_at_every_place(goldens, case):
    f, model = goldens("forward"), make_reward_model(goldens("weights"))
    np.testing.assert_allclose(
        model.head(model.transformer(tensor(f[f"{case}/tokens"]))).detach(), f[f"{case}/reward_head"], rtol=0, atol=3e-5
    )


@pytest.mark.parametrize("name", ["best_of_4", "best_of_2", "scalar_rating", "scalar_compare"])
def test_label_losses_and_gradients(goldens, name):
    g, kind = goldens("reward"), label_type(name)
    labels = loss_labels(g, kind)
    trainer = make_reward_trainer(goldens, labels, name, batch_size=len(labels))
    rewards = label_rewards(trainer.model, labels, trainer.precision)
    if name == "best_of_4":
        np.testing.assert_allclose(rewards.detach(), g["loss/rewards"], rtol=0, atol=5e-5)
    stats = label_statistics(kind, rewards.detach(), labels.target)
    for key, value in g.items():
        if key.startswith(f"{name}/") and "grad" not in key:
            np.testing.assert_allclose(stats[key.split("/")[1]], value, rtol=0, atol=5e-5, err_msg=key)
    label_losses(kind, rewards, labels.target).mean().backward()
    gradients = named_values(trainer.model, gradients=True)
    if name == "best_of_4":
        assert_gradients = {key: value for key, value in g.items() if key.startswith("best_of_4/grad/")}
        assert len(assert_gradients) == len(gradients)
        for key, value in assert_gradients.items():
            np.testing.assert_allclose(
                gradients[key.removeprefix("best_of_4/grad/")].reshape(-1),
                value.reshape(-1),
                rtol=0,
                atol=1e-4,
                err_msg=key,
            )
    else:
        norms = [np.linalg.norm(gradients[key].astype(np.float64)) for key in sorted(gradients)]
        np.testing.assert_allclose(norms, g[f"{name}/grad_norms"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["best_of_4", "scalar_rating", "scalar_compare"])
def test_normalisation_targets(goldens, name):
    g, kind = goldens("reward"), label_type(name)
    np.testing.assert_allclose(
        kind.target_mean_std(loss_labels(g, kind).target), g[f"target_mean_std/{name}"], rtol=0, atol=1e-6
    )


def test_normalize_on_given_responses(goldens):
    g = goldens("reward")
    responses = [tensor(g["responses"]), tensor(g["loss/sample0"]), tensor(g["loss/sample1"])]
    trainer = make_reward_trainer(
        goldens,
        loss_labels(g, label_type("best_of_4")),
        "best_of_4",
        batch_size=6,
        rollout_batch_size=6,
        normalize_samples=18,
    )
    model, queue = trainer.model, list(responses)
    trainer.queries.batch = lambda size: tensor(g["queries"])
    trainer.policy.respond = lambda queries, uniforms: type("Drawn", (), {"tokens": queue.pop(0)})
    model.reset_scale()
    np.testing.assert_allclose(trainer.reward_mean_std("before"), g["stats/mean_std"], rtol=0, atol=1e-5)
    queue.extend(responses)
    trainer.normalize("before", 0.3, 2.0)
    np.testing.assert_allclose([model.gain.item(), model.bias.item()], g["normalize/gain_bias"], rtol=0, atol=3e-5)


# --- optimizer ---


def test_adam(goldens):
    g, o, kind = goldens("reward"), goldens("optim"), label_type("best_of_4")
    labels = loss_labels(g, kind)
    trainer = make_reward_trainer(goldens, labels, "best_of_4", batch_size=6)
    model, optimizer = trainer.model, TensorFlowAdam(trainer.model.parameters())
    slots = {
        "reward_model/model/h0/ln_1/g": model.transformer.h[0].ln_1.weight,
        "reward_model/model/h0/ln_1/b": model.transformer.h[0].ln_1.bias,
        "reward_model/model/heads/reward/w": model.head.weight,
        "reward_model/model/heads/reward/b": model.head.bias,
        "reward_model/reward_norm/gain": model.gain,
    }
    losses = []
    for update in range(1, 6):
        optimizer.zero_grad()
        loss = label_losses(kind, label_rewards(trainer.model, labels, trainer.precision), labels.target).mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step(0.001)
        if update in (1, 2, 5):
            assert_weights(named_values(model), o, f"adam/after_{update}/")
        if update in (1, 5):
            for name, parameter in slots.items():
                state = optimizer.state[parameter]
                np.testing.assert_allclose(state["exp_avg"], o[f"adam/slots_{update}/{name}/adam"], rtol=0, atol=1e-5)
                np.testing.assert_allclose(
                    state["exp_avg_sq"], o[f"adam/slots_{update}/{name}/adam_1"], rtol=0, atol=1e-5
                )
    losses.append(
        label_losses(kind, label_rewards(trainer.model, labels, trainer.precision), labels.target).mean().item()
    )
    np.testing.assert_allclose(losses, o["adam/losses"], rtol=0, atol=1e-4)


# --- reward training ---


def test_reward_training(goldens):
    o, settings = goldens("optim"), Goldens.json("hparams")["reward_train"]
    labels = LabelBatch(
        tensor(o["reward_train/labels/query"]),
        torch.stack([tensor(o[f"reward_train/labels/sample{i}"]) for i in range(4)], 1),
        tensor(o["reward_train/labels/best"]),
    ).rows(slice(0, settings["num_train"]))
    queries = [tensor(o[f"reward_train/normalize_{when}/queries"]) for when in ("before", "after")]
    trainer = make_reward_trainer(
        goldens,
        labels,
        "best_of_4",
        queries=torch.cat(queries).flatten(0, 1),
        batch_size=settings["batch_size"],
        lr=settings["lr"],
        rollout_batch_size=settings["rollout_batch_size"],
        normalize_samples=settings["normalize_samples"],
    )
    indices = tensor(o["reward_train/indices"])
    assert trainer.steps == len(indices) == 5

    def normalize(when: str, target: tuple[float, float]) -> None:
        recorded = tensor(o[f"reward_train/normalize_{when}/responses"])
        draws = iter(
            [
                uniforms_for(trainer.policy, q, r)
                for q, r in zip(tensor(o[f"reward_train/normalize_{when}/queries"]), recorded, strict=True)
            ]
        )
        respond, drawn = trainer.policy.respond, []
        trainer.policy.respond = lambda q, u: drawn.append(respond(q, next(draws))) or drawn[-1]
        metrics = trainer.normalize(when, *target)
        trainer.policy.respond = respond
        assert torch.equal(torch.stack([sample.tokens for sample in drawn]), recorded)
        prefix = f"reward_train/normalize_{when}"
        np.testing.assert_allclose(
            [metrics[f"normalize_{when}/mean"], metrics[f"normalize_{when}/std"]],
            o[f"{prefix}/mean_std"],
            rtol=0,
            atol=5e-5,
        )
        np.testing.assert_allclose(
            [metrics[f"normalize_{when}/gain"], metrics[f"normalize_{when}/bias"]],
            o[f"{prefix}/gain_bias"],
            rtol=0,
            atol=3e-5,
        )
        np.testing.assert_array_equal(target, o[f"{prefix}/target"])

    normalize("before", trainer.kind.target_mean_std(labels.target))
    for step, index in enumerate(indices):
        stats = trainer.step(step, index.cpu())
        np.testing.assert_allclose(stats["lr"], o["reward_train/lr"][step], rtol=1e-7)
        np.testing.assert_allclose(
            [stats["loss"], stats["error"]],
            [o["reward_train/stats/loss"][step], o["reward_train/stats/error"][step]],
            rtol=0,
            atol=1e-4,
        )
        now = named_values(trainer.model)
        for key, value in o.items():
            if key.startswith("reward_train/watch/"):
                name = key.removeprefix("reward_train/watch/")
                np.testing.assert_allclose(
                    now[name], value[step], rtol=0, atol=3e-5 if "reward_norm" in name else 3e-6, err_msg=key
                )
    normalize("after", (0.0, 1.0))
    assert_weights(named_values(trainer.model), o, "reward_train/final/")


def test_label_order_is_one_permutation(goldens):
    o = goldens("optim")
    np.testing.assert_array_equal(
        o["reward_train/permutation"].reshape(5, 4), o["reward_train/indices"]
    )  # the original's batches are slices too
    trainer = make_reward_trainer(
        goldens, loss_labels(goldens("reward"), label_type("best_of_4")), "best_of_4", batch_size=2
    )
    orders = torch.cat([trainer.order(step) for step in range(3)])
    assert sorted(orders.tolist()) == list(range(6))
    again = torch.cat([trainer.order(step) for step in range(3, 6)])
    assert sorted(again.tolist()) == list(range(6)) and not torch.equal(again, orders), "another pass, another order"


# --- PPO ---


@pytest.mark.parametrize("micro_batch", [64, 3])
def test_ppo_cycle(goldens, micro_batch):
    """Two whole steps; a micro-batch of 3 (which divides nothing) gives the same numbers."""
    c, settings = goldens("ppo_cycle"), Goldens.json("hparams")["ppo_cycle"]
    trainer = ppo_trainer(goldens, settings, micro_batch=micro_batch)
    assert trainer.total_steps == settings["nupdates"] == 5
    watched = {
        "policy/model/ln_f/g": trainer.policy.transformer.ln_f.weight,
        "policy/model/heads/value/w": trainer.policy.value_head.weight,
        "policy/model/heads/value/b": trainer.policy.value_head.bias,
    }
    for step in range(2):
        g = {key.removeprefix(f"step{step}/"): value for key, value in c.items() if key.startswith(f"step{step}/")}
        queries, responses = tensor(g["queries"]), tensor(g["responses"])
        trainer.queries.batch = lambda size, queries=queries: queries
        trainer.uniforms = lambda _, queries=queries, responses=responses: uniforms_for(
            trainer.policy, queries, responses
        )
        trainer.order = lambda _, epoch, g=g: tensor(g["permutations"])[epoch]
        minibatches: list = []

        def recording(rollout, rewards, index, lr, minibatches=minibatches):
            result = PPOTrainer.train_minibatch(trainer, rollout, rewards, index, lr)
            minibatches.append((result, lr, {name: p.detach().clone() for name, p in watched.items()}, rewards))
            return result

        trainer.train_minibatch = recording
        assert trainer.kl_controller.value == pytest.approx(g["kl_coef"][0], rel=1e-6)
        metrics, rollout = trainer.step(step)

        assert torch.equal(rollout.responses, responses)
        for field in ("logprobs", "values", "ref_logprobs", "scores"):
            np.testing.assert_allclose(getattr(rollout, field), g[field], rtol=0, atol=1e-4, err_msg=field)
        assert torch.equal(trainer.scorer(queries, responses)[2], tensor(g["postprocessed"]))
        np.testing.assert_allclose(minibatches[0][3], g["rewards"], rtol=0, atol=1e-4)
        scores_last = torch.nn.functional.pad(rollout.scores[:, None], (responses.shape[1] - 1, 0))
        np.testing.assert_allclose(minibatches[0][3] - scores_last, g["non_score_reward"], rtol=0, atol=1e-4)
        assert trainer.kl_controller.value == pytest.approx(g["kl_coef"][1], rel=1e-6)
        np.testing.assert_allclose([lr for _, lr, _, _ in minibatches], g["lr"], rtol=1e-6)
        for key, value in g.items():
            if key.startswith("minibatch_stats/"):
                ours = [stats[key.removeprefix("minibatch_stats/")] for stats, *_ in minibatches]
                np.testing.assert_allclose(ours, value, rtol=0, atol=1e-4, err_msg=key)
            elif key.startswith("watch/"):
                ours = np.stack([values[key.removeprefix("watch/")].numpy() for _, _, values, _ in minibatches])
                np.testing.assert_allclose(ours, value, rtol=0, atol=3e-6, err_msg=key)
            elif key.startswith("stats/"):
                np.testing.assert_allclose(metrics[key.removeprefix("stats/")], value, rtol=0, atol=1e-4, err_msg=key)
        assert metrics["ppo/ratio/std_before"] < 1e-5
        ours = {
            f"policy/{original_name(name)}": p.detach().numpy()
            for name, p in trainer.policy.transformer.named_parameters()
        }
        ours |= {name: p.detach().numpy() for name, p in watched.items()}
        assert_weights(ours, g, "weights_after/")
