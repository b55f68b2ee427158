"""A tokenizer as the metadata of a GGUF file."""

import json
from typing import Any

import numpy as np

from moejax.errors import UsageError
from moejax.interop.tokenizer.gguf import CUTS, WORDS
from moejax.interop.tokenizer.pieces import SPACE, Kind
from moejax.tokenizer import Tokenizer

# A rule for cutting texts has several names; these are the ones to write.
USUAL = ("gpt-2", "llama-bpe", "qwen2", "smollm", "deepseek-v3", "gpt-4o", "tekken", "default")
DIGITS = r"\p{N}"  # one by one


def metadata_of(tokenizer: Tokenizer | None, vocab: int) -> dict[str, Any]:
    """The entries below "tokenizer".

    Args:
      vocab: rows of the model's embedding table; those without a token are named as unused.

    Raises:
      UsageError: llama.cpp has no such tokenizer.
    """
    if tokenizer is None:
        return {"tokenizer.ggml.model": "none"}
    backend = json.loads(tokenizer.to_json())
    model = backend["model"]
    if model["type"] != "BPE":
        raise UsageError(f"a tokenizer of the type {model['type']} cannot be written as GGUF; BPE can")
    texts, kinds = _tokens(backend, vocab)
    own = {"tokens": texts, "token_type": kinds} | _ends(tokenizer)
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    if _parts(backend["normalizer"], "Replace", "Prepend"):
        own |= _sentencepiece(backend, merges, texts)
    else:
        joined = [f"{left} {right}" for left, right in merges]
        own |= {"model": "gpt2", "pre": _cut(backend), "merges": joined, "add_space_prefix": False}
    found = {f"tokenizer.ggml.{key}": value for key, value in own.items()}
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found


def _tokens(backend: dict, vocab: int) -> tuple[list[str], np.ndarray]:
    """(text, kind) of every id."""
    texts, kinds = [f"[PAD{id}]" for id in range(vocab)], np.full(vocab, Kind.UNUSED, np.int32)
    for text, id in backend["model"]["vocab"].items():
        texts[id], kinds[id] = text, Kind.NORMAL
        if backend["model"].get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
            kinds[id] = Kind.BYTE
    for token in backend["added_tokens"]:
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = Kind.CONTROL if token["special"] else Kind.USER_DEFINED
    return texts, kinds


def _ends(tokenizer: Tokenizer) -> dict[str, Any]:
    """How texts begin and end."""
    ends = tokenizer.ends
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "eot": ends[1] if len(ends) > 1 else None}
    found = {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    return found | {"add_bos_token": tokenizer.add_bos}


def _sentencepiece(backend: dict, merges: list, texts: list[str]) -> dict[str, Any]:
    """Scores such that the pieces are joined in the order of the merges."""
    scores = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    unknown = backend["model"]["unk_token"]
    own = {"unknown_token_id": texts.index(unknown)} if unknown in texts else {}
    prefix = any(part.get("prepend") == SPACE for part in _parts(backend["normalizer"], "Prepend"))
    values = np.array([scores.get(text, 0.0) for text in texts], np.float32)
    return own | {"model": "llama", "pre": "default", "scores": values, "add_space_prefix": prefix}


def _cut(backend: dict) -> str:
    """llama.cpp's name for the way texts are cut before merging."""
    patterns = []
    for part in _parts(backend["pre_tokenizer"], "Split", "Digits", "ByteLevel"):
        if part["type"] == "Split":
            patterns.append(part["pattern"].get("Regex"))
        elif part["type"] == "Digits":
            patterns.append(DIGITS if part["individual_digits"] else None)
        elif part["use_regex"]:
            patterns.append(WORDS)
    for name in USUAL:
        if CUTS[name] == tuple(patterns):
            return name
    raise UsageError(
        f"the tokenizer cuts texts by {patterns}, for which llama.cpp has no name; "
        "dataclasses.replace(model, tokenizer=None) leaves the tokenizer out of the file"
    )


def _parts(component: dict | None, *types: str) -> list[dict]:
    """The components of these types, in order; sequences are opened."""
    if component is None:
        return []
    inner = next((component[key] for key in ("normalizers", "pretokenizers") if key in component), None)
    if inner is not None:
        return [part for own in inner for part in _parts(own, *types)]
    return [component] if component["type"] in types else []
