"""Where the transformer looks: the spatial and temporal attention of the paper's figure 3, of any run.

`record_attention` listens at chosen blocks and denoising steps while anything runs the transformer (the pipeline, a
training step, a window of a long video). Queries and keys are computed once more from the attention's own inputs, so
the run itself is untouched, to the bit. The softmax is exact and taken over a few query rows at a time; the whole
[tokens, tokens] matrix never exists.

Figure 3 follows DiTCtrl (arXiv 2412.18597): *spatial* attention is that of a frame's tokens among themselves,
*temporal* attention that of tokens at one place of the picture across the frames. `attention_figures` draws them.

Shape suffixes: N heads, S all tokens (text first), L text tokens, F token frames, P tokens of a frame, R query rows,
                K head width, H W rows and columns of a frame's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models.attention import Attention
from diffusers.models.embeddings import apply_rotary_emb
from numpy.typing import NDArray
from torch import Tensor

from dynamictrl.errors import InputError

if TYPE_CHECKING:
    from dynamictrl.transformer import DynamiCtrlTransformer3DModel

Point = tuple[int, int, int]
"""A video token: its frame, row and column in the token grid."""

MAPS = ("mass", "temporal", "spatial", "received", "sent", "words")


@dataclass(frozen=True)
class Grid:
    """How the video tokens lie: frame by frame, each in rows."""

    frames: int
    rows: int
    columns: int

    @property
    def per_frame(self) -> int:
        """Tokens of one frame."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """Video tokens in all."""
        return self.frames * self.per_frame

    def index(self, point: Point) -> int:
        """A point's place among the video tokens; InputError where it lies outside."""
        frame, row, column = point
        if not (0 <= frame < self.frames and 0 <= row < self.rows and 0 <= column < self.columns):
            raise InputError(
                f"the point (frame {frame}, row {row}, column {column}) lies outside the {self.frames} frames of "
                f"{self.rows} x {self.columns} tokens",
                code="point_outside",
                param="points",
            )
        return (frame * self.rows + row) * self.columns + column


@dataclass(frozen=True)
class AttentionMap:
    """What one block attended to in one step, averaged over its heads; float32 shares of a query's attention."""

    step: int
    """Denoising step, from 0."""
    timestep: float
    """The schedule's, 0 to 999."""
    block: int
    grid: Grid
    mass: NDArray[np.float32]
    """[1 + F, 1 + F]: how a frame's queries share their attention out; the text is first, rows sum to 1."""
    temporal: NDArray[np.float32]
    """[F, F]: from a frame's token to the token at the same place of another frame, averaged over the places."""
    spatial: NDArray[np.float32]
    """[P, P]: among the tokens of one frame, averaged over the frames; rows sum to what stays within the frame."""
    received: NDArray[np.float32]
    """[F, H, W]: what a token gets of an average video token's attention; with the text's share, it sums to 1."""
    sent: NDArray[np.float32]
    """[points, F, H, W]: where the chosen points look."""
    words: NDArray[np.float32]
    """[words, F, H, W]: how much each video token looks at the chosen text tokens."""


@dataclass(frozen=True)
class Wanted:
    """What is recorded, and within which memory."""

    blocks: Sequence[int] | None = None
    """Blocks by number; None: all."""
    steps: Sequence[int] | None = None
    """Denoising steps by number; None: all."""
    points: Sequence[Point] = ()
    """Video tokens whose own attention is kept."""
    words: Sequence[int] = ()
    """Text tokens, by their place in the prompt, whose share of each video token's attention is kept."""
    max_side: int = 1024
    """Spatial maps with more tokens to a side are averaged down to this one."""
    memory_mib: float = 256.0
    """For the rows of attention that exist at once."""


@contextmanager
def record_attention(
    transformer: DynamiCtrlTransformer3DModel, wanted: Wanted | None = None
) -> Iterator[list[AttentionMap]]:
    """Records while the block runs, and yields the list that fills: by step, then by block.

    Of a batch the last sample is recorded (with guidance: the half that sees the prompt), and of several calls with one
    timestep (the windows of a long video) the first. A recorded step takes about twice an unrecorded one's attention.
    Raises InputError for a block that is not there, or, during the run, for a point or word outside its grid.
    """
    recorder = _Recorder(wanted or Wanted(), len(transformer.transformer_blocks))
    handles = [transformer.register_forward_pre_hook(recorder.on_step, with_kwargs=True)]
    for number, block in enumerate(transformer.transformer_blocks):
        if recorder.wants_block(number):
            attention: Any = block.attn1
            handles.append(attention.register_forward_pre_hook(recorder.listener(number), with_kwargs=True))
    try:
        yield recorder.maps
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Recorder:
    wanted: Wanted
    num_blocks: int
    maps: list[AttentionMap] = field(default_factory=list)
    _step: int = -1
    _timestep: float | None = None
    _is_first_call: bool = True
    _grid: Grid = Grid(0, 0, 0)

    def __post_init__(self) -> None:
        outside = [b for b in self.wanted.blocks or () if not 0 <= b < self.num_blocks]
        if outside:
            raise InputError(
                f"there is no block {outside[0]}; the model has blocks 0 to {self.num_blocks - 1}",
                code="no_such_block",
                param="blocks",
            )

    def wants_block(self, number: int) -> bool:
        return self.wanted.blocks is None or number in self.wanted.blocks

    def on_step(self, transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        """Before the transformer runs: which step this is, and how its tokens lie."""
        names = ("hidden_states", "encoder_hidden_states", "timestep")
        given = dict(zip(names, args, strict=False)) | kwargs
        timestep = float(given["timestep"].flatten()[-1])
        self._is_first_call = timestep != self._timestep
        self._step += self._is_first_call
        self._timestep = timestep
        _, frames, _, height, width = given["hidden_states"].shape
        p, p_t = transformer.config["patch_size"], transformer.config["patch_size_t"] or 1
        self._grid = Grid(frames // p_t, height // p, width // p)

    def listener(self, block: int) -> Any:  # noqa: ANN401 - a hook
        def before_attention(attention: Attention, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            wants_step = self.wanted.steps is None or self._step in self.wanted.steps
            if not (wants_step and self._is_first_call):
                return
            with torch.no_grad():
                queries_NSK, keys_NSK = queries_and_keys(attention, kwargs)
                length = kwargs["encoder_hidden_states"].shape[1]
                found = measure(queries_NSK, keys_NSK, length, self._grid, self.wanted)
            self.maps.append(AttentionMap(self._step, self._timestep or 0.0, block, self._grid, **found))

        return before_attention


def queries_and_keys(attention: Attention, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The last sample's queries and keys [N, S, K] as CogVideoX's attention makes them, text first."""
    text, video = inputs["encoder_hidden_states"][-1:], inputs["hidden_states"][-1:]
    joined = torch.cat([text, video], dim=1)
    sides: Any = ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k))
    made = []
    for project, norm in sides:
        x = project(joined).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        x = x if norm is None else norm(x)
        rotary = inputs.get("image_rotary_emb")
        if rotary is not None:
            length = text.shape[1]
            turned: Any = apply_rotary_emb(x[:, :, length:], rotary)
            x = torch.cat([x[:, :, :length], turned], dim=2)
        made.append(x[0])
    return made[0], made[1]


def measure(
    queries_NSK: Tensor, keys_NSK: Tensor, text_length: int, grid: Grid, wanted: Wanted
) -> dict[str, NDArray[np.float32]]:
    """The maps of one attention, by name as in `AttentionMap`; memory stays within `wanted.memory_mib`.

    Raises InputError for a point or word outside the grid.
    """
    total = text_length + grid.tokens
    assert queries_NSK.shape[1] == total, "text and video tokens"
    sums = _Sums.empty(text_length, grid, wanted, queries_NSK.device)
    # A chunk holds the mean over heads, one head's logits and its softmax.
    rows = max(1, min(total, int(wanted.memory_mib * 2**20 / (3 * 4 * total))))
    for start in range(0, total, rows):
        sums.add(_attention_rows(queries_NSK[:, start : start + rows], keys_NSK), start)
    return sums.means()


def _attention_rows(queries_NRK: Tensor, keys_NSK: Tensor) -> Tensor:
    """Softmax of some query rows, averaged over heads, in float32: [R, S]."""
    heads, _, width = queries_NRK.shape
    mean_RS = queries_NRK.new_zeros((queries_NRK.shape[1], keys_NSK.shape[1]), dtype=torch.float32)
    for query_RK, key_SK in zip(queries_NRK, keys_NSK, strict=True):
        logits_RS = query_RK.float() @ key_SK.float().T
        mean_RS += logits_RS.mul_(width**-0.5).softmax(dim=-1)
    return mean_RS.div_(heads)


@dataclass
class _Sums:
    """Sums over query rows, as they come in."""

    text_length: int
    grid: Grid
    mass: Tensor
    temporal: Tensor
    spatial: Tensor
    received: Tensor
    sent: Tensor
    words: Tensor
    points: Tensor
    """Places of the chosen points among all tokens."""
    word_places: Tensor
    bins: Tensor
    """[P], which row and column of the spatial map a frame's token falls into."""

    @classmethod
    def empty(cls, text_length: int, grid: Grid, wanted: Wanted, device: torch.device) -> _Sums:
        outside = [word for word in wanted.words if not 0 <= word < text_length]
        if outside:
            raise InputError(
                f"there is no text token {outside[0]}; the prompt has tokens 0 to {text_length - 1}",
                code="no_such_word",
                param="words",
            )
        points = [text_length + grid.index(point) for point in wanted.points]
        side = min(grid.per_frame, wanted.max_side)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device)

        return cls(
            text_length,
            grid,
            mass=zeros(1 + grid.frames, 1 + grid.frames),
            temporal=zeros(grid.frames, grid.frames),
            spatial=zeros(side, side),
            received=zeros(grid.tokens),
            sent=zeros(len(points), grid.tokens),
            words=zeros(len(wanted.words), grid.tokens),
            points=torch.tensor(points, dtype=torch.long, device=device),
            word_places=torch.tensor(list(wanted.words), dtype=torch.long, device=device),
            bins=torch.arange(grid.per_frame, device=device) * side // grid.per_frame,
        )

    def add(self, attention_RS: Tensor, start: int) -> None:
        """Adds the rows of the queries from place `start` on."""
        length, grid = self.text_length, self.grid
        places = torch.arange(start, start + len(attention_RS), device=attention_RS.device)
        groups = torch.where(places < length, 0, 1 + (places - length) // grid.per_frame)
        by_frame_RFP = attention_RS[:, length:].unflatten(1, (grid.frames, grid.per_frame))
        to_text = attention_RS[:, :length].sum(1, keepdim=True)
        self.mass.index_add_(0, groups, torch.cat([to_text, by_frame_RFP.sum(2)], dim=1))

        for number, point in enumerate(self.points.tolist()):
            if start <= point < start + len(attention_RS):
                self.sent[number] = attention_RS[point - start, length:]
        video = slice(max(0, length - start), None)  # a view: copies would double the memory
        self._add_video(attention_RS[video], by_frame_RFP[video], places[video] - length)

    def _add_video(self, attention_RS: Tensor, by_frame_RFP: Tensor, places: Tensor) -> None:
        frames, cells = places // self.grid.per_frame, places % self.grid.per_frame
        rows = torch.arange(len(places), device=places.device)
        self.temporal.index_add_(0, frames, by_frame_RFP[rows, :, cells])
        within_RP = by_frame_RFP[rows, frames]
        pooled = within_RP.new_zeros(len(places), self.spatial.shape[1]).index_add_(1, self.bins, within_RP)
        self.spatial.index_add_(0, self.bins[cells], pooled)
        self.received += attention_RS[:, self.text_length :].sum(0)
        self.words[:, places] = attention_RS[:, self.word_places].T

    def means(self) -> dict[str, NDArray[np.float32]]:
        """The maps, each divided by the number of queries behind it."""
        grid = self.grid
        queries = self.mass.new_tensor([self.text_length] + [grid.per_frame] * grid.frames).clamp(min=1)
        shape = (-1, grid.frames, grid.rows, grid.columns)
        found = {
            "mass": self.mass / queries[:, None],
            "temporal": self.temporal / grid.per_frame,
            "spatial": self.spatial / (torch.bincount(self.bins)[:, None] * grid.frames),
            "received": (self.received / grid.tokens).reshape(shape[1:]),
            "sent": self.sent.reshape(len(self.sent), *shape[1:]),
            "words": self.words.reshape(len(self.words), *shape[1:]),
        }
        return {name: value.cpu().numpy().astype(np.float32) for name, value in found.items()}
