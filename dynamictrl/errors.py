"""Everything dynamictrl raises on purpose.

DynamiCtrlError
├── InputError (ValueError)      what a user gave cannot be used: an image, a video, a size, a count
│   └── MediaError               bytes that are no usable picture or video; `code` says in which way
├── ConfigError (ValueError)     a setting out of its range, or settings that contradict each other
├── CheckpointError              weights that are missing, damaged, or of another model
├── DatasetError                 a data set folder that is missing, damaged, or of another schema
└── StoreError                   a store or server that answers nothing any more; what was asked for may be fine

A message holds the value, the limit and the way out. `code` is for machines and never changes its meaning.
"""


class DynamiCtrlError(Exception):
    """The root: `except DynamiCtrlError` catches what this library raises on purpose."""

    def __init__(self, message: str, *, code: str = "error", param: str | None = None):
        """`code` is a stable word for machines; `param` names the argument at fault, where there is one."""
        super().__init__(message)
        self.code = code
        self.param = param

    def __reduce__(self):
        # Keyword-only fields would be lost when a worker process sends the error home.
        return _rebuild, (type(self), str(self), self.code, self.param)


def _rebuild(kind: type[DynamiCtrlError], message: str, code: str, param: str | None) -> DynamiCtrlError:
    return kind(message, code=code, param=param)


class InputError(DynamiCtrlError, ValueError):
    """A user's input cannot be used; the message says what would be."""


class MediaError(InputError):
    """Bytes that cannot be read as the picture or video they should be; `code` is a quarantine reason."""


class ConfigError(DynamiCtrlError, ValueError):
    """A setting out of its range, or settings that contradict each other."""


class CheckpointError(DynamiCtrlError):
    """Weights that are missing, damaged, or belong to another model."""


class DatasetError(DynamiCtrlError):
    """A data set folder that is missing, damaged, or of another schema version."""


class StoreError(DynamiCtrlError):
    """A store or server that answers nothing any more: no input is to blame, and the same command can go on later."""
