"""DynamiCtrl: pose-guided human image animation with a PadaLN video DiT.

Public names are loaded on first use, so that `import dynamictrl` costs nothing.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "DynamiCtrlPipeline": "dynamictrl.animation",
    "DynamiCtrlTransformer3DModel": "dynamictrl.transformer",
    "errors": "dynamictrl.errors",
}

__version__ = "0.1.0"
__all__ = ["DynamiCtrlPipeline", "DynamiCtrlTransformer3DModel", "errors"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562 leaves no other type
    if name not in _HOMES:
        raise AttributeError(f"dynamictrl has no public name {name!r}; it has {', '.join(__all__)}")
    module = import_module(_HOMES[name])
    return module if name == "errors" else getattr(module, name)
