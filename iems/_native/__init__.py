"""Compiled kernels, each beside the Python twin that defines its answer.

`IEMS_NATIVE` picks the side at import: `native` (a missing build is an error: what the daemon asks for),
`python` (the twins), `auto` (native where built). Callers write `mime = kernel("mime")`.
"""

import importlib
import os
from types import ModuleType


def kernel(name: str) -> ModuleType:
    """The module `iems._native.NAME`, or its twin `NAME_py`, as `IEMS_NATIVE` says (default auto).

    Raises ImportError if `native` is asked for and the extension is not built, ValueError for another word.
    """
    side = os.environ.get("IEMS_NATIVE", "auto")
    if side not in ("native", "python", "auto"):
        raise ValueError(f"IEMS_NATIVE is {side!r}: use native, python or auto")
    if side != "python":
        try:
            return importlib.import_module(f"iems._native.{name}")
        except ImportError:
            if side == "native":
                raise
    return importlib.import_module(f"iems._native.{name}_py")
