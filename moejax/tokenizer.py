"""Text to token ids and back, for models of any origin: how their texts begin and end, how they chat."""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from moejax import chat_template
from moejax.config import require
from moejax.errors import DataError, UsageError

# Under these names begin and end tokens are found where no other file names them.
BOS_NAMES = ("<|bos|>", "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|endoftext|>")
EOS_NAMES = ("<|eos|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|endoftext|>")
PIECE = 1 << 20  # bytes: longer texts are encoded in pieces, which bounds memory and uses all cores
PROBE = 'def f(x):\n\treturn  "\u00e9\u6f22\U0001f600"  # <|eos|> </s>\r\n\n    '
MARK = "\ufdd0"  # no character, so in no text
ANCHOR = "a"  # what follows it is decoded as the middle of a text


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers` tokenizer, and the ids that frame a text.

    A name of a control token, such as "<|im_end|>", is ordinary text to `encode`; only `encode_rendered`
    takes it for the token.
    """

    backend: tokenizers.Tokenizer  # with `encode_special_tokens`, without truncation and padding
    bos: int | None  # begins a text; None = there is no such token
    eos: int | None  # ends a text; None = there is no such token
    more_ends: tuple[int, ...] = ()  # end a text as well: "<|eot_id|>" ends a turn, which is a text here
    add_bos: bool = True  # the model wants `bos` before every text
    chat_template: str | None = None  # Jinja
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)  # what it was read from, by name

    def __post_init__(self):
        require(
            self.bos is not None or not self.add_bos,
            "add_bos=True, but there is no begin token; give bos, or add_bos=False",
        )

    @functools.cached_property
    def vocab(self) -> int:
        """One more than the greatest id; a model may have more."""
        return 1 + max(self.backend.get_vocab().values(), default=-1)

    @functools.cached_property
    def longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.backend.get_vocab()))

    @property
    def ends(self) -> tuple[int, ...]:
        """Every id after which a text is over."""
        return tuple(dict.fromkeys([*([] if self.eos is None else [self.eos]), *self.more_ends]))

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text from its beginning, as the model wants it."""
        return [*([self.bos] if self.add_bos else []), *self.encode(text)]

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of what a chat template rendered: control tokens are taken for what they are, none is added."""
        return self._parsing.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens left out; exact if it begins and ends between characters."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def decode_after(self, before: Sequence[int], ids: Iterable[int]) -> str:
        """What `ids` add to the text of `before`: a tokenizer may drop a space where a text begins."""
        if not before or before[-1] in self._special:
            return self.decode(ids)
        anchor = self.encode(ANCHOR)
        return self.decode([*anchor, *ids])[len(self.decode(anchor)) :]

    def encode_documents(self, texts: Iterable[bytes]) -> Iterator[np.ndarray]:
        """int32 ids of each UTF-8 text, many at a time on all cores."""
        for group in _groups(texts):
            cut = [[piece.decode() for piece in pieces(text)] for text in group]
            flat = [piece for text in cut for piece in text]
            encoded = iter(self.backend.encode_batch_fast(flat, add_special_tokens=False))
            for text in cut:
                yield np.concatenate([np.array(next(encoded).ids, np.int32) for _ in text])

    def render(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True, **variables) -> str:
        """The text by which the model reads a conversation.

        Args:
          messages: {"role": "user", "content": "..."} and the like.
          answer: end where the model's answer begins.
          **variables: what else the template may ask for, such as tools or enable_thinking.

        Raises:
          UsageError: the model has no chat template.
          TemplateError: the template refuses the messages, is broken, or does too much.

        >>> from moejax.training.data.tokenizer import byte_tokenizer
        >>> template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}"
        >>> tokenizer = dataclasses.replace(byte_tokenizer(), chat_template=template)
        >>> tokenizer.render([{"role": "user", "content": "Hello"}])
        'user: Hello\\n'
        """
        require(
            self.chat_template is not None,
            "the model has no chat template, so it was not made for conversations; continue a text instead",
        )
        tokens = {"bos_token": self._name(self.bos), "eos_token": self._name(self.eos)}
        own = {"messages": messages, "add_generation_prompt": answer}
        return chat_template.render(self.chat_template, {**tokens, **variables, **own})

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True, **variables
    ) -> list[int]:
        """Ids of what `render` gives for the same arguments.

        The name of a control token in a message is ordinary text: who writes a message cannot end it.
        """
        given = _marked({"messages": messages, **variables}, self._names)
        text = self.render(answer=answer, **given)
        if MARK not in text:
            return self.encode_rendered(text)
        parts = self._names.split(text)  # every second one is a name that the template wrote
        ids = (self.encode(part.replace(MARK, "")) for part in parts[::2])
        names = ([self.backend.token_to_id(name)] for name in parts[1::2])
        return [id for pair in itertools.zip_longest(ids, names, fillvalue=[]) for own in pair for id in own]

    def to_json(self) -> str:
        """The contents of a `tokenizer.json`."""
        return self.backend.to_str()

    def save(self, path: str | os.PathLike) -> None:
        """Write the standard `tokenizer.json`."""
        pathlib.Path(path).write_text(self.to_json(), encoding="utf-8")

    @functools.cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """The backend that takes names of control tokens for the tokens; the vocabulary is shared."""
        twin = tokenizers.Tokenizer(self.backend.model)
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            if getattr(self.backend, part) is not None:
                setattr(twin, part, getattr(self.backend, part))
        added = self.backend.get_added_tokens_decoder()
        for _, token in sorted(added.items()):  # a token gets the id it has, so their order does not change
            (twin.add_special_tokens if token.special else twin.add_tokens)([token])
        return twin

    @functools.cached_property
    def _special(self) -> frozenset[int]:
        added = self.backend.get_added_tokens_decoder()
        return frozenset(id for id, token in added.items() if token.special)

    @functools.cached_property
    def _names(self) -> re.Pattern:
        """Finds names of control tokens, the longest at each place."""
        names = sorted(map(self.backend.id_to_token, self._special), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")

    def _name(self, id: int | None) -> str:
        return "" if id is None else self.backend.id_to_token(id)


def load(path: str | os.PathLike) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
      UsageError: there is no such file.
      DataError: it is damaged.
    """
    if not os.path.isfile(path):
        raise UsageError(f"there is no tokenizer at {os.fspath(path)!r}; give the path of a tokenizer.json")
    return from_json(pathlib.Path(path).read_text(encoding="utf-8"), os.fspath(path))


def from_json(text: str, name: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer in the text of a `tokenizer.json`; `name` is for the messages."""
    try:
        with guarded():
            return checked(named(tokenizers.Tokenizer.from_str(text)))
    except ValueError as error:
        raise DataError(f"{name} is not a readable tokenizer.json: {error}; replace the file") from error


def named(backend: tokenizers.Tokenizer) -> Tokenizer:
    """A tokenizer whose begin and end tokens are known by their usual names."""
    bos, eos = (
        next((id for id in map(backend.token_to_id, names) if id is not None), None)
        for names in (BOS_NAMES, EOS_NAMES)
    )
    return Tokenizer(prepared(backend), bos, eos, add_bos=bos is not None)


def prepared(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """`backend`, changed so that it encodes all of a text, and takes nothing in it for a control token."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # a document about "<|eos|>" must not end there
    return backend


def checked(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, after it has taken a text to ids and back, on which some damaged ones fail."""
    tokenizer.decode(tokenizer.encode(PROBE))
    return tokenizer


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Raise ValueError for whatever the tokenizers library raises, panics of its Rust code included."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(str(error)) from error


def _marked(value: Any, names: re.Pattern) -> Any:
    """JSON in which a name that `names` finds in a text has MARK behind its first character."""
    if isinstance(value, str):
        return names.sub(lambda found: found[0][0] + MARK + found[0][1:], value)
    if isinstance(value, Mapping):
        return {key: _marked(own, names) for key, own in value.items()}
    return [_marked(own, names) for own in value] if isinstance(value, list | tuple) else value


def _groups(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Runs of texts of about 8 pieces."""
    group, size = [], 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= 8 * PIECE:
            yield group
            group, size = [], 0
    if group:
        yield group


def pieces(text: bytes) -> Iterator[bytes]:
    """`text` in parts of at most PIECE bytes, cut after line breaks or, failing that, between characters."""
    start = 0
    while len(text) - start > PIECE:
        end = text.rfind(b"\n", start, start + PIECE) + 1
        if end <= start:
            end = start + PIECE
            while text[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        yield text[start:end]
        start = end
    yield text[start:]
