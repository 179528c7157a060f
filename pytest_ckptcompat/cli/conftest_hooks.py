"""Use the hooks of the current folder's ``conftest.py``, for commands that run the user's code anyway."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ckptcompat.core import hooks
from pytest_ckptcompat.core.errors import raised

from .options import make_importable

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def known(*, wanted: bool) -> Iterator[None]:
    """Also use the hooks of ``conftest.py``, if it implements any of ours.

    Raises:
        ValueError: ``conftest.py`` can't be imported.
    """
    path = Path("conftest.py")
    if not wanted or not path.is_file() or b"pytest_ckptcompat_" not in path.read_bytes():
        yield
        return
    make_importable()
    spec = spec_from_file_location("conftest", path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"conftest.py, which has hooks of ckptcompat, failed: {raised(error)}") from None
    relay = hooks.of_module(module)
    hooks.use(relay)
    try:
        yield
    finally:
        hooks.forget(relay)
