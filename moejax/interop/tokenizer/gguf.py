"""The tokenizer in the metadata of a GGUF file: byte-level BPE ("gpt2") and SentencePiece BPE ("llama")."""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from moejax.errors import CheckpointError, UsageError
from moejax.interop.tokenizer import pieces
from moejax.interop.tokenizer.pieces import Kind, Pieces
from moejax.tokenizer import Tokenizer, checked, guarded, prepared

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _REST
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
GPT_4O = (
    "|".join(f"{word}{_SUFFIXES}?" for word in _CASED)
    + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)
TEKKEN = "|".join(_CASED) + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]")
DEEPSEEK_3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _REST,
)
# Where a text is cut before merging, by the file's name for it: patterns, one after the other.
CUTS = (
    {"default": DEFAULT, "deepseek-v3": DEEPSEEK_3, "tekken": (TEKKEN,)}
    | dict.fromkeys(("gpt-4o", "llama4"), (GPT_4O,))
    | dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), (LLAMA_3,))
    | dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), (QWEN_2,))
    | dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais"), (WORDS,))
    | dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", WORDS))
)
WHOLE_WORDS = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "tekken",
)  # a word that is a token needs no merges
ADD_BOS = WHOLE_WORDS  # unless the file says otherwise
ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>")


def read(metadata: Mapping[str, Any], where: str) -> Tokenizer | None:
    """The tokenizer of a GGUF file; None where the file says that it has none.

    Args:
      metadata: of the file; arrays are numpy arrays or lists.
      where: the file, for messages.

    Raises:
      UsageError: its kind of tokenizer is not served.
      CheckpointError: the vocabulary is damaged.
    """
    kind, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in ("gpt2", "llama"):
        raise UsageError(f"{where}: tokenizer.ggml.model={kind!r}; gpt2 and llama can be read")
    if kind == "gpt2" and cut not in CUTS:
        raise UsageError(f"{where}: tokenizer.ggml.pre={cut!r}; there are {', '.join(sorted(CUTS))}")
    try:
        with guarded():
            return checked((_byte_level if kind == "gpt2" else _sentencepiece)(_Vocabulary(metadata), cut))
    except ValueError as error:
        raise CheckpointError(f"{where}: the tokenizer is damaged: {error}; replace the file") from error


class _Vocabulary:
    """The entries below "tokenizer.ggml", looked at with suspicion."""

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata
        names = [str(text) for text in self._list("tokens")]
        self.texts = [text or f"[EMPTY_{id}]" for id, text in enumerate(names)]
        self.scores = [float(x) for x in self._list("scores", 0.0)]
        self.kinds = [int(x) for x in self._list("token_type", Kind.NORMAL)]

    def get(self, name: str, default=None):
        """The entry of that name."""
        return self._metadata.get(f"tokenizer.ggml.{name}", default)

    def id(self, name: str, default: int | None = None) -> int | None:
        """The entry `name`, which is a token's id; one outside the vocabulary is none."""
        id = self.get(f"{name}_token_id", default)
        return int(id) if id is not None and 0 <= int(id) < len(self.texts) else None

    def merges(self) -> list[tuple[str, str]]:
        """Pairs of tokens, most urgent first."""
        pairs = [str(text) for text in self.get("merges", ())]
        cuts = [text.find(" ", 1) for text in pairs]  # a token may begin with a space
        if -1 in cuts:
            raise ValueError(f"the merge {pairs[cuts.index(-1)][:80]!r} has no space in it")
        return [(text[:at], text[at + 1 :]) for text, at in zip(pairs, cuts, strict=True)]

    def tokenizer(self, backend: tokenizers.Tokenizer, bos: int | None, eos: int | None, add_bos: bool):
        """The record around `backend`."""
        named = enumerate(zip(self.texts, self.kinds, strict=True))
        usual = [id for id, (text, kind) in named if kind == Kind.CONTROL and text in ENDS]
        ends = [self.id("eot"), self.id("eom"), *usual]
        return Tokenizer(
            prepared(backend),
            bos,
            eos,
            tuple(dict.fromkeys(id for id in ends if id not in (None, eos))),
            add_bos=bos is not None and bool(self.get("add_bos_token", add_bos)),
            chat_template=self._metadata.get("tokenizer.chat_template"),
        )

    def _list(self, name: str, default=None) -> list:
        """One entry per token; `default` for every token where there is none."""
        values = self.get(name)
        if values is None and default is None:
            raise ValueError(f"tokenizer.ggml.{name} is missing")
        values = [default] * len(self.texts) if values is None else list(values)
        if name != "tokens" and len(values) != len(self.texts):
            raise ValueError(f"tokenizer.ggml.{name} has {len(values)} entries for {len(self.texts)} tokens")
        return values


def _byte_level(vocabulary: _Vocabulary, cut: str) -> Tokenizer:
    texts, kinds = vocabulary.texts, vocabulary.kinds
    vocab = Pieces(texts, vocabulary.scores, kinds, None, False).vocab
    backend = tokenizers.Tokenizer(models.BPE(vocab, vocabulary.merges(), ignore_merges=cut in WHOLE_WORDS))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in CUTS[cut]]
    prefix = bool(vocabulary.get("add_space_prefix", False))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    backend.decoder = decoders.ByteLevel()
    pieces.add_tokens(backend, texts, kinds)
    return vocabulary.tokenizer(backend, vocabulary.id("bos"), vocabulary.id("eos"), cut in ADD_BOS)


def _sentencepiece(vocabulary: _Vocabulary, _: str) -> Tokenizer:
    prefix = bool(vocabulary.get("add_space_prefix", True))
    unknown = vocabulary.id("unknown", 0)
    backend = pieces.bpe(Pieces(vocabulary.texts, vocabulary.scores, vocabulary.kinds, unknown, prefix))
    return vocabulary.tokenizer(backend, vocabulary.id("bos", 1), vocabulary.id("eos", 2), True)
