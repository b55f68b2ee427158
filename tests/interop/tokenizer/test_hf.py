"""Hub directories: every place where a token can be named, files given back as they were, hostile files."""

import dataclasses
import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from moejax.errors import CheckpointError
from moejax.interop.tokenizer import hf
from moejax.training.data.tokenizer import byte_tokenizer
from tests.interop.tokenizer import test_sentencepiece

BYTES = byte_tokenizer()
TEXT = "Hello, <|im_start|> w\u00f6rld\n"


def directory(path, **files):
    """A directory with files by name, JSON where the name ends so; "__" stands for the dot."""
    path.mkdir(exist_ok=True)
    for name, content in ({"tokenizer__json": BYTES.to_json()} | files).items():
        text = content if isinstance(content, str) else json.dumps(content)
        if content is not None:
            (path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return path


def test_tokens_are_known_by_their_usual_names(tmp_path):
    read = hf.read(directory(tmp_path))
    assert (read.bos, read.ends, read.add_bos, read.chat_template) == (1, (2,), True, None)
    assert read.encode(TEXT) == BYTES.encode(TEXT)


@pytest.mark.parametrize("bos", ["<|bos|>", {"content": "<|bos|>", "lstrip": False}])
@pytest.mark.parametrize("place", ["tokenizer_config__json", "special_tokens_map__json"])
def test_tokens_are_known_by_the_files(tmp_path, bos, place):
    read = hf.read(directory(tmp_path, **{place: {"bos_token": bos, "eos_token": "<|pad|>"}}))
    assert (read.bos, read.eos, read.add_bos) == (1, 0, False)  # the tokenizer.json adds none
    assert not hf.read(directory(tmp_path, tokenizer_config__json={"eos_token": "<|eos|>"})).add_bos


def test_whether_texts_begin_with_the_begin_token(tmp_path):
    config = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    made = hf._with_begin_token(BYTES)
    assert hf.read(directory(tmp_path, tokenizer__json=made, tokenizer_config__json=config)).add_bos
    said = config | {"add_bos_token": False}
    assert not hf.read(directory(tmp_path, tokenizer__json=made, tokenizer_config__json=said)).add_bos
    said = {"bos_token": None, "add_bos_token": True}
    assert not hf.read(directory(tmp_path, tokenizer_config__json=said)).add_bos


def test_a_sentencepiece_model_is_read_where_there_is_no_other(tmp_path):
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    path = directory(tmp_path, tokenizer__json=None, tokenizer_config__json=config)
    (path / "tokenizer.model").write_bytes(test_sentencepiece.model())
    assert hf.read(path).encode_prompt("ab abb") == [1, 7, 7, 5]
    (path / "tokenizer_config.json").unlink()
    assert hf.read(directory(tmp_path)).encode("ab") == BYTES.encode("ab"), "a tokenizer.json comes first"


@pytest.mark.parametrize(("said", "ends"), [(7, (2, 7)), ([7, 2, 5], (2, 7, 5)), (None, (2,)), ([], (2,))])
def test_generation_config_names_more_ends(tmp_path, said, ends):
    assert hf.read(directory(tmp_path, generation_config__json={"eos_token_id": said})).ends == ends


def test_a_chat_template_is_in_one_of_three_places(tmp_path):
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    for said, found in (("text", "text"), (several, "d"), (several[:1], None)):
        config = {"chat_template": said}
        assert hf.read(directory(tmp_path, tokenizer_config__json=config)).chat_template == found
    assert hf.read(directory(tmp_path, chat_template__jinja="file")).chat_template == "file"


def test_tokens_that_only_the_config_knows(tmp_path):
    added = {str(BYTES.vocab): {"content": "<|im_start|>", "special": True}}
    read = hf.read(directory(tmp_path, tokenizer_config__json={"added_tokens_decoder": added}))
    assert read.encode_rendered("<|im_start|>a") == [BYTES.vocab, *BYTES.encode("a")]
    assert BYTES.vocab not in read.encode("<|im_start|>a")


def test_a_lossy_tokenizer_is_fine(tmp_path):
    lossy = tokenizers.Tokenizer(models.WordLevel({"a": 0, "?": 1}, "?"))
    lossy.pre_tokenizer = pre_tokenizers.Whitespace()
    assert hf.read(directory(tmp_path, tokenizer__json=lossy.to_str())).encode("a  b") == [0, 1]


def test_files_come_back_as_they_were(tmp_path):
    config = '{"bos_token":   "<|bos|>",\n "unknown_to_us": [1]}'
    read = hf.read(
        directory(tmp_path, tokenizer_config__json=config, merges__txt="m", model__txt="no file of ours")
    )
    assert hf.files(read) == {
        name: (tmp_path / name).read_bytes()
        for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt")
    }


@pytest.mark.parametrize("add_bos", [True, False])
def test_a_tokenizer_of_our_own_is_found_again(tmp_path, add_bos):
    own = dataclasses.replace(BYTES, more_ends=(7,), chat_template="x", add_bos=add_bos)
    for name, content in hf.files(own).items():
        (tmp_path / name).write_bytes(content)
    back = hf.read(tmp_path)
    for name in ("bos", "eos", "ends", "add_bos", "chat_template"):
        assert getattr(back, name) == getattr(own, name), name
    assert back.encode_prompt(TEXT) == own.encode_prompt(TEXT)


@pytest.mark.parametrize("add_bos", [True, False])
def test_transformers_finds_the_same_tokenizer(tmp_path, add_bos):
    transformers = pytest.importorskip("transformers", reason="the peer transformers is not installed")
    own = dataclasses.replace(
        BYTES, add_bos=add_bos, chat_template="{{ bos_token }}{{ messages[0].content }}<|eos|>"
    )
    for name, content in hf.files(own).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs.encode("Hello") == own.encode_prompt("Hello")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
    message = [{"role": "user", "content": "hi"}]
    assert theirs.apply_chat_template(message, tokenize=False) == own.render(message)
    assert theirs.apply_chat_template(message)["input_ids"] == own.encode_chat(message)


BOMBS = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep model": '{"version": "1.0", "model": ' + '{"a": ' * 10_000 + "1" + "}" * 10_001,
    "no model": '{"version": "1.0"}',
    "huge id": '{"version":"1.0","model":{"type":"BPE","vocab":{"a":99999999999},"merges":[]}}',
    "no vocabulary": '{"version":"1.0","model":{"type":"Unigram","unk_id":5,"vocab":[]}}',
    "unknown id": '{"version":"1.0","model":{"type":"Unigram","unk_id":5,"vocab":[["a",0.0]]}}',
    "no text": "\x00",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_error(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a readable tokenizer"):
        hf.read(directory(tmp_path, tokenizer__json=BOMBS[name]))


def test_padding_and_truncation_in_the_file_do_nothing(tmp_path):
    content = json.loads(BYTES.to_json())
    content["padding"] = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
    content["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|pad|>"}
    assert hf.read(directory(tmp_path, tokenizer__json=content)).encode("ab") == BYTES.encode("ab")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer__json": None}, "has no tokenizer; put a tokenizer.json or a tokenizer.model"),
        (
            {"tokenizer__json": None, "tokenizer__model": "\x0a"},
            "tokenizer.model is not a readable tokenizer",
        ),
        ({"tokenizer_config__json": "[" * 999}, "tokenizer_config.json is no JSON that can be trusted"),
        ({"tokenizer_config__json": {"bos_token": "<nobody>"}}, "'<nobody>' .* is not in the vocabulary"),
        ({"tokenizer_config__json": {"bos_token": 5}}, "the token 5 .* is not in the vocabulary"),
        ({"tokenizer_config__json": {"chat_template": 5}}, "chat_template of .* is a int"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"9999": {"content": "<new>"}}}}, "'<new>'"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"x": {}}}}, "added_tokens_decoder"),
        ({"generation_config__json": {"eos_token_id": [-1]}}, r"eos_token_id=\[-1\] is no token id"),
        ({"generation_config__json": {"eos_token_id": True}}, "eos_token_id=True is no token id"),
        ({"generation_config__json": "{"}, "generation_config.json is no JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, files, words):
    with pytest.raises(CheckpointError, match=words):
        hf.read(directory(tmp_path, **files))


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = directory(tmp_path)
    with open(path / "tokenizer.json", "ab") as file:
        file.truncate(hf.MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match="has 67,108,865 bytes"):
        hf.read(path)


def test_links_out_of_the_directory_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text(BYTES.to_json())
    path = directory(tmp_path / "model", tokenizer__json=None)
    (path / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a link to"):
        hf.read(path)
