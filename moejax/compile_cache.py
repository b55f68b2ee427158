"""Compiled programs, kept between starts."""

import logging
import os

log = logging.getLogger(__name__)


def use() -> None:
    """Let JAX keep what it compiles in the user's cache; nothing, if JAX_COMPILATION_CACHE_DIR names a place.

    The directory is the user's alone: what lies in it is run as machine code.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    import jax

    from moejax.training.data.cache import directory

    place = directory("") / "xla"
    try:
        place.mkdir(parents=True, exist_ok=True)
        for folder in (place.parent, place):
            folder.chmod(0o700)  # refused by the system where it is another user's
    except OSError as error:
        log.warning("compiled programs are not kept (%s); every start compiles anew", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
