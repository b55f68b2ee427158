"""Contestants take turns."""

from moejax.bench.rounds import interleave


def test_every_other_round_goes_backwards():
    seen = []
    contestants = {name: lambda name=name: seen.append(name) for name in "ab"}
    samples = interleave(contestants, 3, 2, lambda: seen.append("|"))
    assert "".join(seen) == "|aabb|bbaa|aabb"
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 3, "b": 3}
    assert all(second >= 0 for taken in samples.values() for second in taken)
