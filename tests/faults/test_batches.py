"""F20 and F21: batch files with wrong lines, and batches that are killed or run out of disk."""

import json
import os
import random
import subprocess

import filelock
import pytest

from tests.faults.server import (
    Server,
    bad_lines,
    good_line,
    huge_line,
    kill_often,
    save_model,
    write_batch,
)

COUNTS = (400, pytest.param(2000, marks=pytest.mark.nightly))  # lines of F20
SHARE = 10  # one line in so many is wrong
KILLS = 4


@pytest.fixture(scope="session")
def serve(shared) -> Server:
    """Starts serve.py: `serve(requests, output, *flags)`."""
    model = shared / "served"
    with filelock.FileLock(shared / "served.lock"):
        if not model.exists():
            save_model(model)
    return Server(model, shared / "cache" / "xla")


@pytest.fixture(scope="module")
def batch(serve, tmp_path_factory):
    """(requests, answers of an undisturbed run)."""
    folder = tmp_path_factory.mktemp("batch")
    requests, output = folder / "in.jsonl", folder / "out.jsonl"
    write_batch(requests, 400)
    ended = serve(requests, output)
    assert ended.code == 0, ended.output
    return requests, output


def some_seed() -> int:
    seed = random.SystemRandom().randrange(10**6)
    print(f"{seed=}")
    return seed


def wrong_and_right(rng: random.Random, count: int) -> tuple[list[bytes], dict[int, str]]:
    """Lines of which some are wrong, and the codes of those by number; each kind comes up."""
    lines, codes = [good_line(rng, 1)], {}
    kinds = len(bad_lines("", ""))
    for number in range(2, count + 1):
        if number % SHARE:
            lines.append(good_line(rng, number))
            continue
        if number in (count // 4, count // 2):
            content, codes[number] = huge_line(f"request-{number}")
        else:
            used = f"request-{rng.choice([n for n in range(1, number) if n % SHARE])}"
            content, codes[number] = bad_lines(f"request-{number}", used)[number // SHARE % kinds]
        lines.append(content)
    return lines, codes


@pytest.mark.parametrize("count", COUNTS)
def test_wrong_lines_are_answered_one_by_one(serve, tmp_path, count):
    lines, codes = wrong_and_right(random.Random(some_seed()), count)
    assert len(lines) == count and len(codes) == count // SHARE
    clean = [b"" if number in codes else line for number, line in enumerate(lines, 1)]
    outputs = []
    for name, content in (("dirty", lines), ("clean", clean)):
        requests, output = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-out.jsonl"
        requests.write_bytes(b"\n".join(content) + b"\n")
        ended = serve(requests, output, f"--summary={tmp_path}/{name}.json")
        assert ended.code == 0, ended.output
        outputs.append(output.read_bytes().splitlines())
    dirty, clean = outputs
    assert len(dirty) == count
    assert [row for number, row in enumerate(dirty, 1) if number not in codes] == clean
    for number, text in enumerate(dirty, 1):
        row = json.loads(text)
        assert row["id"] == f"batch_req_{number}"
        response = row["response"]
        assert response["status_code"] == (400 if number in codes else 200)
        if number in codes:
            error = response["body"]["error"]
            assert (error["code"], error["type"]) == (codes[number], "invalid_request_error")
            assert f"dirty.jsonl:{number}: " in error["message"] and len(error["message"]) < 600
        else:
            assert row["custom_id"] == f"request-{number}"
    summary = json.loads((tmp_path / "dirty.json").read_text())
    assert (summary["requests"], summary["errors"]) == (count, len(codes))


def test_killed_at_random_bytes(serve, batch, tmp_path):
    requests, straight = batch
    output = tmp_path / "out.jsonl"
    kill_often(serve, requests, output, some_seed(), KILLS, straight.stat().st_size)
    assert output.read_bytes() == straight.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a disk of 400 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_loses_no_answer(serve, batch, small_disk):
    requests, straight = batch
    output, part, filler = (small_disk / name for name in ("out.jsonl", "out.jsonl.part", "filler"))
    size = straight.stat().st_size
    for room, told in (
        (size // 2, f"{part} cannot be written: No space left on device; it keeps the "),
        (size * 3 // 2, f"{output} cannot be written: No space left on device; all answers are in"),
    ):
        filler.write_bytes(bytes(400 * 1024 - room))
        ended = serve(requests, output, "--resume")
        assert ended.code == 74, ended.output
        assert told in ended.output
        assert {path.name for path in small_disk.iterdir()} == {"out.jsonl.part", "filler"}
        filler.unlink()
    ended = serve(requests, output, "--resume")
    assert ended.code == 0, ended.output
    assert output.read_bytes() == straight.read_bytes()
