"""GPT-2's forward pass in TensorFlow operations, and real TensorFlow checkpoints with random weights, as the original
writes them.

Independent of the library: variables have the original's names and shapes, and nothing here imports what converts them.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

SIZES = dict(n_vocab=97, n_ctx=64, n_embd=32, n_head=4, n_layer=3)


def random_variables(
    sizes: dict[str, int], seed: int = 0, scope: str = "", heads: bool = False
) -> dict[str, np.ndarray]:
    """All variables of a model, perturbed away from their usual initial values so that no mistake hides."""
    random = np.random.default_rng(seed)
    v, p, c, n = sizes["n_vocab"], sizes["n_ctx"], sizes["n_embd"], sizes["n_layer"]
    shapes = {"model/wte": [v, c], "model/wpe": [p, c], "model/ln_f/g": [c], "model/ln_f/b": [c]}
    for i in range(n):
        h = f"model/h{i}"
        shapes |= {
            f"{h}/ln_1/g": [c],
            f"{h}/ln_1/b": [c],
            f"{h}/ln_2/g": [c],
            f"{h}/ln_2/b": [c],
            f"{h}/attn/c_attn/w": [1, c, 3 * c],
            f"{h}/attn/c_attn/b": [3 * c],
            f"{h}/attn/c_proj/w": [1, c, c],
            f"{h}/attn/c_proj/b": [c],
            f"{h}/mlp/c_fc/w": [1, c, 4 * c],
            f"{h}/mlp/c_fc/b": [4 * c],
            f"{h}/mlp/c_proj/w": [1, 4 * c, c],
            f"{h}/mlp/c_proj/b": [c],
        }
    if heads:
        shapes |= {
            "model/heads/value/w": [c],
            "model/heads/value/b": [],
            "model/heads/reward/w": [c],
            "model/heads/reward/b": [],
            "reward_norm/gain": [],
            "reward_norm/bias": [],
        }
    scale = {"wte": 0.1, "wpe": 0.05, "w": 0.15}
    values = {
        name: random.normal(size=shape, scale=scale.get(name.split("/")[-1], 0.2)).astype(np.float32)
        for name, shape in shapes.items()
    }
    for name in values:
        if name.endswith("/g"):
            values[name] = values[name] + np.float32(1)
    return {f"{scope}/{name}" if scope else name: value for name, value in values.items()}


def write_checkpoint(
    folder: Path,
    variables: dict[str, np.ndarray],
    sizes: dict[str, int] | None = None,
    name: str = "model.ckpt",
    adam_slots: bool = False,
) -> Path:
    """Save with TensorFlow's own saver; `sizes` go into hparams.json. Returns the checkpoint's prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        values = dict(variables)
        if adam_slots:
            values |= {
                f"{key}/{slot}": np.full_like(value, 7)
                for key, value in variables.items()
                for slot in ("adam", "adam_1")
            }
            values["train_step"] = np.int64(3)
        placeholders = {key: v1.placeholder(np.asarray(value).dtype, np.shape(value)) for key, value in values.items()}
        made = {key: v1.Variable(placeholders[key], name=key, use_resource=False) for key in values}
        session.run(v1.global_variables_initializer(), {placeholders[key]: value for key, value in values.items()})
        assert all(variable.op.name == key for key, variable in made.items())
        v1.train.Saver(save_relative_paths=True).save(session, str(folder / name))
    if sizes:
        (folder / "hparams.json").write_text(json.dumps(sizes))
    return folder / name


def forward(
    variables: dict[str, np.ndarray], sizes: dict[str, int], tokens: np.ndarray, scope: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states after ln_f [B, T, C] and logits [B, T, V] of tokens [B, T] without padding, in float32."""

    def get(name):
        return tf.constant(variables[f"{scope}/model/{name}" if scope else f"model/{name}"])

    def norm(x, where):
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + 1e-5) * get(f"{where}/g") + get(f"{where}/b")

    def conv(x, where):
        return tf.einsum("btc,cd->btd", x, get(f"{where}/w")[0]) + get(f"{where}/b")

    B, T = tokens.shape
    H, C = sizes["n_head"], sizes["n_embd"]
    x = tf.gather(get("wte"), tokens) + get("wpe")[:T]
    hidden_future = tf.constant(np.triu(np.full((T, T), -1e10, np.float32), 1))
    for i in range(sizes["n_layer"]):
        q, k, v = (
            tf.reshape(part, [B, T, H, C // H])
            for part in tf.split(conv(norm(x, f"h{i}/ln_1"), f"h{i}/attn/c_attn"), 3, axis=-1)
        )
        weights = tf.nn.softmax(tf.einsum("bthd,bshd->bhts", q, k) / (C // H) ** 0.5 + hidden_future)
        x += conv(tf.reshape(tf.einsum("bhts,bshd->bthd", weights, v), [B, T, C]), f"h{i}/attn/c_proj")
        u = conv(norm(x, f"h{i}/ln_2"), f"h{i}/mlp/c_fc")
        x += conv(0.5 * u * (1 + tf.tanh((2 / np.pi) ** 0.5 * (u + 0.044715 * u**3))), f"h{i}/mlp/c_proj")
    hidden = norm(x, "ln_f")
    return hidden.numpy(), tf.einsum("btc,vc->btv", hidden, get("wte")).numpy()
