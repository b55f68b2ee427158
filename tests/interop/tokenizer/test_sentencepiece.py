"""SentencePiece models give the ids that SentencePiece gives; damaged ones give words."""

import io
import struct

import pytest

from moejax.interop.tokenizer import sentencepiece

STRANGE = (
    *("", " ", "  ", " a", "   a   b ", "a\r\nb\r\n", "\t\tx\t y", "\n\n", "<s>a</s> <unk>", "<0x0A>"),
    *(
        "\U0001f600\U0001f44d\U0001f3fd",
        "\u6f22\u5b57 \u0661\u0662",
        "e\u0301 \ufb01 \uff46\uff55",
        "a\u2581b",
    ),
    *("don't we've", "1,000 3.14", "a" * 100, " " * 30 + "x", "\u200b\u00a0\u3000\x7f"),
)
TEXT = [f"the {animal} sat on the {thing}, {n} times\n" for n in range(40) for animal, thing in
        (("cat", "mat"), ("dog", "log"), ("otter", "water"), ("caf\u00e9 owner", "terrace"))]  # fmt: skip


def field(number: int, value) -> bytes:
    """A field of a message: an int, a float, or bytes of fewer than 128."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return bytes([number << 3 | 2, len(value)]) + value


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def model(kind: int = 2, *more: bytes) -> bytes:
    rows = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("\u2581", -9.0, 1), ("a", -8.0, 1)]
    rows += [("b", -7.0, 1), ("ab", -1.0, 1), ("\u2581ab", -2.0, 1)]
    parts = [
        field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in rows
    ]
    return b"".join(parts) + field(2, field(3, kind)) + b"".join(more)


def test_a_model_written_by_hand():
    for kind in (sentencepiece.BPE, sentencepiece.UNIGRAM):
        tokenizer = sentencepiece.read(model(kind))
        assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (1, 2, True)
        assert tokenizer.encode_prompt("ab  abb") == [1, 7, 7, 5]
        assert tokenizer.decode([1, 7, 7, 5]) == "ab abb"
    no_prefix = sentencepiece.read(model(2, field(3, field(3, 0) + field(4, 0))))
    assert no_prefix.encode("ab  ab") == [6, 3, 7]
    assert sentencepiece.read(model(2, field(2, field(3, 2) + field(41, 2**64 - 1)))).bos is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (model()[:-1], "does not fit into its message"),
        (b"\x0a", "no number at byte 1"),
        (b"\xff" * 20, "no number at byte"),
        (field(1, 5), "a number in place of bytes"),
        (model(3), "a model of kind 3"),
        (model(2, field(3, field(5, 0))), "writes spaces"),
        (model(2, field(1, field(1, b"ab"))), "'ab' is there twice"),
        (field(1, field(1, b"\xff")), "invalid start byte"),
    ],
)
def test_a_damaged_model_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        sentencepiece.read(data)


AS_IT_IS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
WHOLE = {"add_dummy_prefix": False, "user_defined_symbols": ["<turn>", "\u2581\u2581", "\t"]}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bpe", AS_IT_IS | {"byte_fallback": True}),
        ("bpe", AS_IT_IS | WHOLE),
        ("unigram", {"byte_fallback": True}),
        ("unigram", {"bos_id": -1, "pad_id": 0, "eos_id": 1, "unk_id": 2}),
    ],
)
def test_ids_are_those_of_sentencepiece(kind, settings):
    reference = pytest.importorskip("sentencepiece", reason="the peer sentencepiece is not installed")
    written = io.BytesIO()
    reference.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=written,
        model_type=kind,
        vocab_size=400,
        hard_vocab_limit=False,
        required_chars="</>_unk0xA",
        minloglevel=2,
        **settings,
    )
    oracle = reference.SentencePieceProcessor(model_proto=written.getvalue())
    tokenizer = sentencepiece.read(written.getvalue())
    for text in (*STRANGE, *TEXT):
        assert tokenizer.encode(text) == oracle.encode(text), text
        if oracle.unk_id() not in oracle.encode(text):
            assert tokenizer.decode(oracle.encode(text)) == oracle.decode(oracle.encode(text)), text
    named = [None if id < 0 else id for id in (oracle.bos_id(), oracle.eos_id())]
    assert [tokenizer.bos, tokenizer.eos] == named
