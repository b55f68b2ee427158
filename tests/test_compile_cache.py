"""Where compiled programs are kept, and who may put them there."""

import stat

import jax
import pytest

from moejax import compile_cache


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The directories that JAX was told to use."""
    told = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: told.append((name, value)))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return told


def test_the_directory_is_the_users_alone(kept, tmp_path):
    place = tmp_path / "moejax" / "xla"
    place.mkdir(parents=True, mode=0o777)
    compile_cache.use()
    assert kept == [("jax_compilation_cache_dir", str(place))]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (place, place.parent)} == {0o700}


def test_a_place_that_the_user_names_is_left_alone(kept, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    compile_cache.use()
    assert not kept and not (tmp_path / "moejax").exists()


def test_without_a_place_nothing_is_kept(kept, tmp_path, caplog):
    (tmp_path / "moejax").write_text("a file")
    compile_cache.use()
    assert not kept
    assert "every start compiles anew" in caplog.text
