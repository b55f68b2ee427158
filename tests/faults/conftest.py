"""One text, one cache and one undisturbed run for all fault tests."""

import pathlib

import filelock
import pytest

from tests.faults.trainer import Trainer


@pytest.fixture(scope="session")
def shared(tmp_path_factory, request) -> pathlib.Path:
    """A directory that all processes of this test session share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "faults"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def train(shared) -> Trainer:
    """Starts train.py: `train(run_dir, *flags, faults=..., devices=...)`."""
    with filelock.FileLock(shared / "text.lock"):
        text = shared / "text.py"
        if not text.exists():
            write_text(text)
    return Trainer(text, shared / "cache")


def write_text(path: pathlib.Path) -> None:
    """Twelve kilobytes of very plain code."""
    path.write_text("".join(f"def f{i}(x):\n    return x + {i * i % 97}\n\n" for i in range(400)))


@pytest.fixture(scope="session")
def straight(train, shared) -> pathlib.Path:
    """The directory of an undisturbed run on one device."""
    run_dir = shared / "straight"
    with filelock.FileLock(shared / "straight.lock"):
        if not (run_dir / "report.html").exists():
            ended = train(run_dir, "--config.train.checkpoint.keep_last=100")
            assert ended.code == 0, ended.output
    return run_dir
