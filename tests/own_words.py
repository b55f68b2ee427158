"""What a process said itself, without what compilers for other platforms say when they are loaded."""

import re

_LOADED = re.compile(r"WARNING: All log messages before absl::InitializeLog\(\)|I0000 .*cudart_stub")


def own_words(stderr: str | bytes) -> str:
    """The lines of `stderr` that are the program's own; the CUDA plugin's, which no setting silences, go."""
    text = stderr.decode() if isinstance(stderr, bytes) else stderr
    return "".join(line for line in text.splitlines(keepends=True) if not _LOADED.match(line))
