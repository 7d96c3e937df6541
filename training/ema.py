"""A moving average of the weights, kept beside the optimizer: what is exported where `ema_decay` is set."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch import Tensor


class MovingAverage:
    """Float32 averages of the weights that learn: w_avg = decay w_avg + (1 - decay) w after every step."""

    def __init__(self, engine: DeepSpeedEngine, decay: float):
        self._engine, self._decay = engine, decay

    def update(self) -> None:
        """After an optimizer step that was applied."""

    def gather(self) -> dict[str, Tensor] | None:
        """The whole transformer with averaged weights, in host memory on the first worker, None on the others."""

    def fragments(self) -> dict[str, tuple[int, Tensor]]:
        """This worker's share: parameter name to (first element in the flat parameter, live float32 values [n]).

        Checkpoints copy them, and write into them on resume, also where the number of workers has changed.
        """
        return {}
