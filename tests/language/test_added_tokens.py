"""GPT-2s with tokens added: read from people's files, encoded as `transformers` encodes, padding outside them all."""

import dataclasses
import json
import pickle
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.data.tasks import QueryFormatter, readable
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.language.encoding import (
    END_OF_TEXT,
    Encoding,
    ExtendedEncoding,
    get_encoding,
    gpt2_encoding,
    same_encoding,
)
from lm_human_preferences.language.model_folders import convert_hugging_face, load_config, load_model, save_model
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.reward_model import RewardModel

from gpt2_folders import DLITE, make_dlite, make_folder, make_model, make_padded, plain_tokenizer
from small import ROOT


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """By name: DLite's shape, one pad token, and tokens of every kind in a vocabulary filled up to 50,304."""
    root, added = tmp_path_factory.mktemp("models"), transformers.AddedToken
    every = [
        added("<left>", lstrip=True),
        added("<right>", rstrip=True),
        added("<both>", lstrip=True, rstrip=True, normalized=False),
        added("cat", single_word=True),  # one of GPT-2's own
        "<left><right>",
        "zoë",
    ]
    return {
        "dlite": make_dlite(root / "dlite"),
        "padded": make_padded(root / "padded"),
        "every": make_folder(root / "every", {"pad_token": "[PAD]", "sep_token": "<sep>"}, every, unused=40),
    }


@pytest.fixture(params=["dlite", "padded", "every"])
def folder(folders, request) -> Path:
    return folders[request.param]


def texts(encoding: Encoding, count: int = 300) -> list[str]:
    """Texts in which added tokens stand beside each other, words, white space, and parts of themselves."""
    draw, own = random.Random(0), [token.text for token in encoding.added_tokens]
    between = " ,  ,\n,\n\n,a,cats, cat ,_,. ,<,###,### ,é,日,\u3000,\x1c,\u200d,²,<|endo,hello world,zo".split(",")
    return ["".join(draw.choice(own + between) for _ in range(draw.randint(1, 9))) for _ in range(count)]


def test_their_numbers(folders):
    dlite, padded, every = (load_config(folders[name]) for name in ("dlite", "padded", "every"))
    assert (dlite.n_vocab, dlite.padding_token) == (50260, 50262)
    assert [(token.id, token.text) for token in dlite.added_tokens] == list(
        zip(range(50257, 50260), DLITE, strict=True)
    )
    assert (padded.n_vocab, padded.padding_token) == (50258, 50260)
    [pad] = padded.added_tokens
    assert (pad.id, pad.text, pad.roles, pad.special) == (50257, "[PAD]", ("pad_token",), True)
    assert every.n_vocab == 50304 and every.padding_token == 50306 and len(every.added_tokens) == 8
    assert not same_encoding(dlite, padded) and same_encoding(dlite, load_config(folders["dlite"]))


def test_transformers_encodes_as_we_do(folder, tmp_path):
    """The folder's tokenizer and that of a folder we write: 300 random texts, and every token by itself."""
    encoding = get_encoding(load_config(folder))
    save_model(tmp_path / "ours", load_model(folder))
    assert load_config(tmp_path / "ours") == load_config(folder)
    theirs = [transformers.AutoTokenizer.from_pretrained(place) for place in (folder, tmp_path / "ours")]
    assert theirs[0].special_tokens_map == theirs[1].special_tokens_map and len(theirs[0]) == len(theirs[1])
    assert theirs[0].all_special_tokens == theirs[1].all_special_tokens
    every = texts(encoding)
    assert encoding.encode_batch(every) == [encoding.encode(text) for text in every]
    for tokenizer in theirs:
        for text in every:
            assert tokenizer.encode(text) == encoding.encode(text), text
            if "ë" not in text:  # of such letters in added tokens `transformers` makes broken characters
                assert tokenizer.decode(encoding.encode(text)) == encoding.decode(encoding.encode(text)), text
    for token in encoding.added_tokens:
        assert encoding.encode(token.text) == [token.id] and encoding.decode([token.id]) == token.text


def test_texts_round_trip(folders):
    for name in ("dlite", "padded"):
        encoding = get_encoding(load_config(folders[name]))
        for text in texts(encoding):
            assert encoding.decode(encoding.encode(text)) == text
            assert encoding.decode([*encoding.encode(text), encoding.padding_token]) == text


def test_marks_are_no_part_of_what_is_read(folders):
    """A judge of texts reads neither the end of a text nor a special token that the model ends with."""
    encoding = get_encoding(load_config(folders["dlite"]))
    end = encoding.encode("### End")
    tokens = torch.tensor([*encoding.encode(" fine."), *end, encoding.padding_token, encoding.end_of_text])
    assert len(end) == 1 and readable(encoding, tokens) == " fine."
    assert encoding.marks == {encoding.end_of_text, *(token.id for token in encoding.added_tokens)}
    plain = dataclasses.replace(encoding.added_tokens[0], special=False)
    ordinary = ExtendedEncoding(gpt2_encoding(), (plain, *encoding.added_tokens[1:]), encoding.n_vocab)
    assert ordinary.marks == encoding.marks - {plain.id}


def test_what_plain_gpt2_and_the_others_share(folders):
    """Ids of texts without added tokens are GPT-2's; the end of a text stays ordinary characters; no token has an id
    beyond the vocabulary.
    """
    encoding = get_encoding(load_config(folders["dlite"]))
    for text in ("A film.", "<|endoftext|>", "", "###", " two  spaces\n\n"):
        assert encoding.encode(text) == gpt2_encoding().encode(text)
    assert encoding.decode([END_OF_TEXT]) == "<|endoftext|>" and encoding.base is gpt2_encoding()
    for outside in (-1, 50260, 50261):
        with pytest.raises(KeyError, match="not a token of gpt2, 50260 tokens with '### End', '### Instruction:'"):
            encoding.decode([outside])
    assert pickle.loads(pickle.dumps(encoding)) is encoding


def test_a_character_cut_in_two_by_padding_is_whole(folders):
    encoding = get_encoding(load_config(folders["dlite"]))
    first, *others = encoding.encode("日")
    assert others and encoding.decode([first, encoding.padding_token, *others, 50257]) == "日### End"


def test_logits_equal_those_of_transformers(folder):
    theirs, ours = transformers.GPT2LMHeadModel.from_pretrained(folder).eval(), load_model(folder)
    tokens = torch.randint(0, ours.config.n_vocab, (3, 40), generator=generator_for(0, "test"))
    tokens[:, 3:6] = torch.arange(ours.config.n_vocab - 3, ours.config.n_vocab)  # added tokens, or ids beyond them
    with torch.no_grad():
        expected, found = theirs(tokens).logits, ours.logits(ours(tokens))
    assert found.shape == expected.shape == (3, 40, ours.config.n_vocab)
    assert expected.std() > 1 and (found - expected).abs().max() < 1e-4


def test_padding_inserted_anywhere_changes_nothing(folder):
    """Every added token in the row, 50259 among them where it is one; in one pass, in two with a cache, in sampling."""
    model = load_model(folder)
    padding, own = model.config.padding_token, [token.id for token in model.config.added_tokens]
    row = torch.tensor([[50, *own, 60, 70, own[0], 80]])
    places = [n for n in range(row.shape[1]) for _ in range(2)]  # a padding behind each token
    padded = row[:, places].clone()
    padded[:, 1::2] = padding
    policy = Policy(model, QueryFormatter([own[0]], [own[-1], 5]), temperature=1.0)
    uniforms = torch.rand(1, 6, generator=generator_for(0, "test"))
    with torch.no_grad():
        whole = model(row)
        assert (model(padded)[:, ::2] - whole).abs().max() < 1e-5
        assert (model(padded)[:, 1::2] - whole).abs().max() < 1e-5
        cache = model.new_cache(1, padded.shape[1])
        chunks = torch.cat([model.extend(part, cache) for part in (padded[:, :7], padded[:, 8:])], dim=1)
        assert (chunks[:, -1] - whole[:, -1]).abs().max() < 1e-5
        assert (model.last_states(padded) - whole[:, -1]).abs().max() < 1e-5
        first, second = policy.respond(row, uniforms), policy.respond(padded, uniforms)
        assert torch.equal(first.tokens, second.tokens)
        assert (first.logprobs - second.logprobs).abs().max() < 1e-4
        reward = RewardModel(model)
        reward.head.initialise(generator_for(0, "head"))
        scores = reward(row, first.tokens), reward(padded, torch.nn.functional.pad(first.tokens, (0, 3), value=padding))
        assert (scores[0] - scores[1]).abs().max() < 1e-4


def test_policies_and_reward_models_keep_the_tokens(folder, tmp_path):
    formatter = QueryFormatter([], [])
    Policy.load(folder, formatter, 1.0).save(tmp_path / "policy")
    RewardModel.from_language_model(folder, generator_for(0, "head")).save(tmp_path / "reward_model")
    convert_hugging_face(folder, tmp_path / "converted")
    for name in ("policy", "reward_model", "converted"):
        assert load_config(tmp_path / name) == load_config(folder)
        assert "tokenizer_config.json" in (tmp_path / name / "SHA256SUMS").read_text()
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        for token in load_config(folder).added_tokens:
            assert tokenizer.encode(token.text) == [token.id]
        theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / name)
        assert theirs.config.vocab_size == load_config(folder).n_vocab and theirs.config.eos_token_id == END_OF_TEXT


def test_ids_without_a_text_are_said_once(folders, capsys):
    encoding, said = get_encoding(load_config(folders["every"])), "the ids 50264 to 50303 stand for no text"
    assert encoding.decode([50303, 64, 50264]) == "a"
    for _ in range(2):
        load_model(folders["every"])
    assert capsys.readouterr().err.count(said) <= 1  # an earlier test may have loaded it
    load_model(folders["dlite"])
    assert "no text" not in capsys.readouterr().err


def test_a_models_encoding_is_taken_with_its_added_tokens():
    """From the name alone it would be GPT-2's own; a model from scratch has none but the name."""
    files = {path: path.read_text() for path in (ROOT / "lm_human_preferences").rglob("*.py")}
    by_name = {path.name for path, text in files.items() if re.search(r"get_encoding\([^()]*\.encoding\)", text)}
    assert by_name == {"train_sft.py"}


# --- the forms in which people's files have them ---


@pytest.fixture
def bare(folders, tmp_path) -> Path:
    """DLite's shape without any file that says what its tokens are."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folders["dlite"] / name, tmp_path / "model")
    return tmp_path / "model"


def write(folder: Path, **contents: object) -> None:
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


NUMBERS = {text: 50257 + n for n, text in enumerate(DLITE)}
FLAGS = dict(lstrip=False, rstrip=False, single_word=False, normalized=False, special=True)
FORMS = {
    "added_tokens.json": dict(added_tokens=NUMBERS),
    "with a map of the special ones": dict(
        added_tokens=NUMBERS, special_tokens_map={"eos_token": "<|endoftext|>", "additional_special_tokens": DLITE}
    ),
    "the map alone": dict(
        special_tokens_map={"sep_token": {"content": DLITE[0]}, "additional_special_tokens": DLITE[1:]}
    ),
    "tokenizer_config.json": dict(
        tokenizer_config={
            "tokenizer_class": "GPT2Tokenizer",
            "added_tokens_decoder": {
                "50256": {"content": "<|endoftext|>", **FLAGS},
                **{str(number): {"content": text, **FLAGS} for text, number in NUMBERS.items()},
            },
        }
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_tokenizer_files(bare, tmp_path, form):
    """Each as `transformers` reads it, with GPT-2's vocab.json and merges.txt beside it."""
    plain_tokenizer(tmp_path / "plain")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tmp_path / "plain" / name, bare)
    write(bare, **FORMS[form])
    encoding, theirs = get_encoding(load_config(bare)), transformers.AutoTokenizer.from_pretrained(bare)
    assert {token.text: token.id for token in encoding.added_tokens} == NUMBERS
    for text in texts(encoding, 100):
        assert encoding.encode(text) == theirs.encode(text), text


def test_a_token_without_a_row_is_no_token(tmp_path):
    """A tokenizer that was given more tokens than its model, as happens."""
    tokenizer = plain_tokenizer(tmp_path / "plain")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    make_model(50257).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = load_config(tmp_path / "model")
    assert config.added_tokens == () and config.padding_token == 50259 and get_encoding(config) is gpt2_encoding()


def test_a_model_of_ours_to_which_transformers_added_tokens(tmp_path):
    """Its config.json still has our padding token of before."""
    save_model(tmp_path / "ours", load_model(make_folder(tmp_path / "plain")))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(tmp_path / "more")
    tokenizer.save_pretrained(tmp_path / "more")
    assert json.loads((tmp_path / "more/config.json").read_text())["padding_token"] == 50259
    config = load_model(tmp_path / "more").config
    assert (config.n_vocab, config.padding_token, config.added_tokens[0].text) == (50258, 50260, "[PAD]")


@pytest.mark.parametrize(
    "files, says",
    [
        ({}, "the vocabulary has 50260 tokens, 3 more than GPT-2's encoding, and no file beside it says what they are"),
        (dict(vocab={"a": 0, "b": 1}), "vocab.json is not GPT-2's tokenizer"),
        (dict(tokenizer={"model": {"vocab": [["a", 0]]}}), "tokenizer.json is not GPT-2's tokenizer"),
        (dict(added_tokens={"### End": 50257, "b": 50259}), "up to 50259 but none with the id 50258"),
        (dict(added_tokens={"a": 50257, "b": 50257}), "contradict each other: 'a' is token 50257, and 'b' is token"),
        (
            dict(added_tokens=NUMBERS, tokenizer_config={"added_tokens_decoder": {"50258": {"content": "### End"}}}),
            "contradict each other: '### End' is token 50258, and '### End' is token 50257",
        ),
        (dict(added_tokens={"dog": 9246}), "call token 9246 'dog', but in GPT-2's encoding it is 'cat'"),
        (dict(added_tokens={"": 50257}), "do not list added tokens as transformers does"),
        (dict(added_tokens={"a": "b"}), "do not list added tokens as transformers does"),
        (dict(added_tokens=[1]), "added_tokens.json holds a list, not a JSON object"),
        (dict(tokenizer={"added_tokens": 5}), "do not list added tokens as transformers does"),
        (dict(special_tokens_map={"pad_token": 5}), "do not list added tokens as transformers does"),
    ],
)
def test_tokenizer_files_that_cannot_be_used(bare, files, says):
    write(bare, **files)
    with pytest.raises(UserError, match=says) as caught:
        load_config(bare)
    assert "\n" not in str(caught.value) and str(bare) in str(caught.value)


def test_a_changed_tokenizer_of_ours_is_noticed(folders, tmp_path):
    save_model(tmp_path / "ours", load_model(folders["dlite"]))
    path = tmp_path / "ours/tokenizer_config.json"
    path.write_text(path.read_text().replace("### End", "### Fin"))
    with pytest.raises(UserError, match="tokenizer_config.json is damaged or was changed"):
        load_config(tmp_path / "ours")
