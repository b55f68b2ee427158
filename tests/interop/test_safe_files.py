"""Files by strangers: names, links, pipes."""

import os
from pathlib import Path

import pytest

from moejax.errors import CheckpointError
from moejax.interop import safe_files


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "model"
    root.mkdir()
    (root / "a").write_text("content")
    return root


def test_a_plain_file(root):
    assert safe_files.inside(root, "a") == (root / "a").resolve()
    assert safe_files.read_bytes(safe_files.inside(root, "a"), 100) == b"content"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../secret", "x/a", "/etc/passwd", "a\x00b", "a\\b", "a" * 300]
)
def test_names_that_are_paths(root, name):
    with pytest.raises(CheckpointError, match="is no plain name"):
        safe_files.inside(root, name)


def test_links(root):
    (root / "within").symlink_to("a")
    (root / "out").symlink_to("../secret")
    (root / "absolute").symlink_to(root.parent / "secret")
    (root / "twice").symlink_to("out")
    assert safe_files.inside(root, "within") == (root / "a").resolve()
    for name in ("out", "absolute", "twice"):
        with pytest.raises(CheckpointError, match=f"{name} is a link to .*secret, outside of"):
            safe_files.inside(root, name)


def test_the_cache_of_the_hub_links_to_its_blobs(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for blob in (tmp_path / "models--org--name" / "blobs" / "aa", tmp_path / "models--org--other" / "bb"):
        blob.parent.mkdir(parents=True)
        blob.write_text("content")
    (snapshot / "good").symlink_to("../../blobs/aa")
    (snapshot / "bad").symlink_to("../../../models--org--other/bb")
    assert safe_files.inside(snapshot, "good").name == "aa"
    with pytest.raises(CheckpointError, match="outside of"):
        safe_files.inside(snapshot, "bad")


def test_pipes_and_devices_are_no_files(root):
    os.mkfifo(root / "pipe")
    for path in (root / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="is no regular file"), safe_files.opened(path):
            pass


def test_a_file_that_ends_early(root):
    memory = memoryview(bytearray(5))
    with safe_files.opened(root / "a") as fd:
        safe_files.read_into(fd, memory, 2)
        assert bytes(memory) == b"ntent"
    with (
        pytest.raises(CheckpointError, match="it ends at byte 7, 1 bytes before it should"),
        safe_files.opened(root / "a") as fd,
    ):
        safe_files.read_into(fd, memory, 3)
