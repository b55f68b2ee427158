"""A process with little memory that opens what it is given, and says of each thing what came of it.

    python hostile_child.py files DIRECTORY      every file in it, as safetensors
    python hostile_child.py models DIRECTORY     every directory in it, as a model

Prints {"name", "outcome"} per thing, and at the end {"start_mib", "peak_mib"} of memory.
"""

import json
import resource
import shutil
import signal
import sys
from pathlib import Path

LIMIT_BYTES = 1 << 30
CPU_SECONDS, SECONDS = 2.0, 20.0  # for each thing; a signal ends the process


def mib(field: str) -> float:
    """VmHWM or VmRSS of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def open_file(path: Path) -> str:
    """As the only file of a model; what is accepted must be readable, and the same to the library."""
    from safetensors import safe_open

    from moejax.interop.safetensors.source import SafetensorsDir

    root = path.parent / "as_model"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    path.rename(root / "model.safetensors")
    source = SafetensorsDir(root)
    for name in source.names():
        part = source.read(name)
        assert (part.shape, part.dtype) == (source.info(name).shape, source.info(name).dtype)
    with safe_open(root / "model.safetensors", "numpy") as theirs:
        assert set(theirs.keys()) == set(source.names())
        for name in source.names():
            assert tuple(theirs.get_slice(name).get_shape()) == source.info(name).shape
    return "opened"


def open_model(path: Path) -> str:
    """As `moejax.load` does."""
    import moejax

    moejax.load(path, offline=True)
    return "opened"


def attempt(opener, path: Path) -> str:
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)  # it may wait and not compute
    try:
        return opener(path)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def main(kind: str, folder: str) -> None:
    if kind == "models":
        import moejax

        moejax.load  # noqa: B018 - what it imports is not the cost of a file
        from moejax.interop.hf.families import families

        families()
    else:
        import moejax.interop.safetensors.source
    opener = {"files": open_file, "models": open_model}[kind]
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    start = mib("VmRSS")
    for path in sorted(Path(folder).iterdir()):
        print(json.dumps({"name": path.name, "outcome": attempt(opener, path)}), flush=True)
    print(json.dumps({"start_mib": start, "peak_mib": mib("VmHWM")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
