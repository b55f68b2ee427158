"""The tokenizer of a directory in the layout of the Hugging Face hub."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from moejax.errors import CheckpointError
from moejax.interop import json_file, safe_files
from moejax.interop.tokenizer import sentencepiece
from moejax.interop.tokenizer.pieces import put_first
from moejax.tokenizer import Tokenizer, checked, guarded, named

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model")  # the first that is there is read
TEMPLATE = "chat_template.jinja"
# Given back on save as they were; what transformers writes into a directory for a text model.
FILES = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    TEMPLATE,
)
ADDED = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
MAX_BYTES = 64 << 20  # of a file; the largest tokenizer.json of well-known models has 34 MB


def read(directory: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a model's directory: tokenizer.json or a SentencePiece model, and what is said of it.

    Which tokens begin and end a text is read from tokenizer_config.json, special_tokens_map.json and
    generation_config.json; without the first two, tokens of the usual names are taken.

    Raises:
      CheckpointError: there is no tokenizer, or a file is damaged.
    """
    root = Path(directory)
    content = {name: _content(root, name) for name in FILES if os.path.lexists(root / name)}
    name = next((name for name in VOCABULARIES if name in content), None)
    if name is None:
        raise CheckpointError(f"{root} has no tokenizer; put a {' or a '.join(VOCABULARIES[:2])} into it")
    with _blaming(root / name, "is not a readable tokenizer"):
        tokenizer = checked(_vocabulary(name, content[name]))
    said = {name: _parsed(root, name, content) for name in content if name.endswith("config.json")}
    special = _parsed(root, "special_tokens_map.json", content)
    config = special | said.get("tokenizer_config.json", {})
    if config:
        tokenizer = _framed(tokenizer, config, root)
    with _blaming(root, "has a damaged chat template"):
        template = content[TEMPLATE].decode() if TEMPLATE in content else _template(config)
    ends = _ends(root, tokenizer, said.get("generation_config.json", {}))
    return dataclasses.replace(tokenizer, more_ends=ends, chat_template=template, files=content)


def files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """What to write beside a model so that `read`, and transformers, find the same tokenizer.

    One that was read from such a directory is given back byte for byte.
    """
    if tokenizer.files:
        return dict(tokenizer.files)
    name = tokenizer.backend.id_to_token
    bos, eos = (None if id is None else name(id) for id in (tokenizer.bos, tokenizer.eos))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "add_bos_token": tokenizer.add_bos,
        "clean_up_tokenization_spaces": False,
    }
    generation = {"bos_token_id": tokenizer.bos, "eos_token_id": list(tokenizer.ends)}
    made = {
        "tokenizer.json": _with_begin_token(tokenizer).encode(),
        "tokenizer_config.json": _json(config),
        "generation_config.json": _json(
            {key: value for key, value in generation.items() if value is not None}
        ),
    }
    return made | ({} if tokenizer.chat_template is None else {TEMPLATE: tokenizer.chat_template.encode()})


def _content(root: Path, name: str) -> bytes:
    return safe_files.read_bytes(safe_files.inside(root, name), MAX_BYTES)


def _parsed(root: Path, name: str, content: Mapping[str, bytes]) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    if name not in content:
        return {}
    with _blaming(root / name, "is no JSON that can be trusted"):
        return json_file.parse(content[name])


@contextlib.contextmanager
def _blaming(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong is a fault of the file `path`."""
    try:
        with guarded():
            yield
    except ValueError as error:
        raise CheckpointError(f"{path} {what}: {error}; replace the file") from error


def _vocabulary(name: str, content: bytes) -> Tokenizer:
    if name == "tokenizer.json":
        return named(tokenizers.Tokenizer.from_str(content.decode()))
    return sentencepiece.read(content)


def _framed(tokenizer: Tokenizer, config: Mapping[str, Any], root: Path) -> Tokenizer:
    """`tokenizer` with the begin and end tokens that the files name."""
    with _blaming(root / "tokenizer_config.json", "has a damaged added_tokens_decoder"):
        _add_tokens(tokenizer.backend, config.get("added_tokens_decoder", {}))
    bos, eos = (_id(tokenizer.backend, config.get(f"{key}_token"), root) for key in ("bos", "eos"))
    explicit = config.get("add_bos_token")
    add_bos = bos is not None and (_begins(tokenizer.backend, bos) if explicit is None else bool(explicit))
    return dataclasses.replace(tokenizer, bos=bos, eos=eos, add_bos=add_bos)


def _add_tokens(backend: tokenizers.Tokenizer, added: Mapping[str, Any]) -> None:
    """Tokens that only tokenizer_config.json knows, {"32000": {"content": "<|im_start|>", ...}}."""
    for id, entry in sorted(added.items(), key=lambda item: int(item[0])):
        text = entry["content"]
        if backend.token_to_id(text) is None:
            backend.add_tokens([AddedToken(**{key: entry[key] for key in ADDED if key in entry})])
        if backend.token_to_id(text) != int(id):
            raise ValueError(f"the token {text!r} has id {backend.token_to_id(text)} and not {id}")


def _id(backend: tokenizers.Tokenizer, token: Any, root: Path) -> int | None:
    """The id of a token that is given as text, or as an object with its content."""
    text = token.get("content") if isinstance(token, Mapping) else token
    if text is None:
        return None
    id = backend.token_to_id(text) if isinstance(text, str) else None
    if id is None:
        raise CheckpointError(f"{root}: the token {text!r} of tokenizer_config.json is not in the vocabulary")
    return id


def _begins(backend: tokenizers.Tokenizer, bos: int) -> bool:
    """Whether the tokenizer.json itself puts `bos` in front of a text."""
    return backend.encode("a").ids[:1] == [bos]


def _template(config: Mapping[str, Any]) -> str | None:
    """The template in tokenizer_config.json: text, or several with names."""
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = found.get("default")
    if not isinstance(found, str | None):
        raise ValueError(f"chat_template of tokenizer_config.json is a {type(found).__name__}")
    return found


def _ends(root: Path, tokenizer: Tokenizer, generation: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a text beside the end token."""
    said = generation.get("eos_token_id")
    ids = [*tokenizer.more_ends, *(said if isinstance(said, list) else [said])]
    for id in ids:
        if id is not None and (not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < 1 << 31):
            raise CheckpointError(f"{root / 'generation_config.json'}: eos_token_id={said!r} is no token id")
    return tuple(dict.fromkeys(id for id in ids if id not in (None, tokenizer.eos)))


def _with_begin_token(tokenizer: Tokenizer) -> str:
    """The tokenizer.json that puts the begin token where the model wants it."""
    text = tokenizer.to_json()
    if not tokenizer.add_bos or _begins(tokenizer.backend, tokenizer.bos):
        return text
    twin = tokenizers.Tokenizer.from_str(text)
    put_first(twin, tokenizer.bos)
    return twin.to_str()


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
