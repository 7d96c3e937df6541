"""One training step as one CUDA graph: at the mini family's sizes a GPU otherwise waits for Python.

step = GraphedStep(parameters, rate=1e-3, loss=draw_and_compute_loss, ema=0.999, device="cuda")
step(rate) -> the loss, still on the device
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dynamictrl.mini.ranks import mean_gradients


class GraphedStep:
    """Loss, gradients (their mean over all ranks), clipping, AdamW and the moving average, captured once and replayed.

    `loss` takes nothing and returns a scalar; it draws its own random batch on the device and must not wait for it
    (no copies from or to the host). On a CPU, or with `captured` off, the same is run as it stands.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        loss: Callable[[], Tensor],
        *,
        device: str,
        weight_decay: float = 0.01,
        ema: float = 0.999,
        captured: bool = True,
    ):
        self.parameters, self.loss, self.ema = parameters, loss, ema
        self.mean = [p.detach().clone() for p in parameters]
        self.rate = torch.zeros((), device=device)
        on_gpu = device.startswith("cuda")
        self.optimizer = torch.optim.AdamW(
            parameters, lr=self.rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True, capturable=on_gpu
        )
        self._value = torch.zeros((), device=device)
        self._graph = self._capture() if on_gpu and captured else None

    def __call__(self, rate: float) -> Tensor:
        """One step at a learning rate; the loss is overwritten by the next call."""
        self.rate.fill_(rate)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._run()
        return self._value

    def _run(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        value = self.loss()
        value.backward()
        mean_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1 - self.ema)  # pyright: ignore[reportPrivateUsage]
            self._value.copy_(value.detach())

    def _capture(self) -> torch.cuda.CUDAGraph:
        # Kernels are chosen and compiled in the steps before the capture; the rate is zero, so nothing moves.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (the collectives' watchdog) go on asking the device while this one captures.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._run()
        return graph

    @torch.no_grad()
    def restart_average(self) -> None:
        """Forgets the average so far: early weights would only blur it."""
        for mean, live in zip(self.mean, self.parameters, strict=True):
            mean.copy_(live)

    @torch.no_grad()
    def apply_average(self) -> None:
        """Puts the average in the place of the trained values."""
        for live, mean in zip(self.parameters, self.mean, strict=True):
            live.copy_(mean)
