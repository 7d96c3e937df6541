"""A base of the true architecture with random weights, and a data set of random latents at the true shapes.

What the benchmarks of training share: nothing is downloaded, and nothing but the frozen models is smaller than the real
thing (they are not run where encodings are precomputed). Times are those of real weights; quality is nobody's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dynamictrl.samples import encodings, shards
from dynamictrl.samples.encodings import EncodedBy, Encodings, folder_hash
from training.config import Recipe
from training.samples.data import Order
from training.settings.checkpoints import Checkpoints
from training.settings.clips import Clips
from training.settings.model import Model
from training.settings.optimization import Optimization
from training.settings.speed import Speed
from training.settings.workers import Workers

_COGVIDEOX: dict[str, Any] = {
    "attention_head_dim": 64,
    "in_channels": 32,
    "out_channels": 16,
    "time_embed_dim": 512,
    "text_embed_dim": 4096,
    "max_text_seq_length": 226,
    "sample_height": 60,
    "sample_width": 90,
    "sample_frames": 49,
    "pose_control": "padaln",
}
_TINY: dict[str, Any] = _COGVIDEOX | {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 6,
    "time_embed_dim": 32,
    "text_embed_dim": 64,
    "max_text_seq_length": 16,
    "sample_height": 12,
    "sample_width": 8,
    "sample_frames": 13,
    "use_rotary_positional_embeddings": True,
}


@dataclass(frozen=True)
class Shape:
    """A transformer's config, and the clip that it is trained on."""

    config: Mapping[str, Any]
    num_frames: int
    height: int
    width: int
    fps: float = 8.0


SHAPES: dict[str, Shape] = {
    "5b": Shape(
        _COGVIDEOX
        | {
            "num_attention_heads": 48,
            "num_layers": 42,
            "use_rotary_positional_embeddings": True,
            "use_learned_positional_embeddings": True,
        },
        49, 480, 720,
    ),
    "5b-1.5": Shape(
        _COGVIDEOX
        | {
            "num_attention_heads": 48,
            "num_layers": 42,
            "use_rotary_positional_embeddings": True,
            "patch_size_t": 2,
            "ofs_embed_dim": 512,
            "patch_bias": False,
            "sample_height": 96,
            "sample_width": 170,
            "sample_frames": 81,
        },
        37, 1360, 768, 16.0,
    ),
    "2b": Shape(_COGVIDEOX | {"num_attention_heads": 30, "num_layers": 30}, 49, 480, 720),
    "tiny": Shape(_TINY, 13, 96, 64),
    "tiny-1.5": Shape(_TINY | {"patch_size_t": 2, "ofs_embed_dim": 32, "patch_bias": False}, 13, 96, 64),
}  # fmt: skip
"""By name: 17,776 tokens (5b, 2b), 20,626 (5b-1.5), 112 and 64 (tiny ones, for the CPU)."""

FILE_BYTES = 4_000_000_000
"""Of one file of weights."""


def recipe_for(shape: Shape, base: Path, *, device: str, workers: int = 1, micro_batch_size: int = 1) -> Recipe:
    """Full fine-tuning on one clip a worker and step, everything precomputed, nothing saved before the end."""
    on_gpu = device == "cuda"
    return Recipe(
        model=Model(base=str(base)),
        clips=Clips(
            height=shape.height,
            width=shape.width,
            num_frames=shape.num_frames,
            fps=shape.fps,
            image_noise=False,  # its picture would go through a VAE, which is tiny here
            cache_gib=0.0,  # a real data set does not fit either: every sample comes from its shard
        ),
        optimization=Optimization(
            steps=10_000,
            batch_size=workers * micro_batch_size,
            micro_batch_size=micro_batch_size,
            warmup_steps=10,
        ),
        workers=Workers(
            num_workers=0 if workers == 1 else workers,
            device="cuda" if on_gpu else "cpu",
            precision="bf16" if on_gpu else "fp32",
        ),
        speed=Speed(),
        checkpoints=Checkpoints(checkpoint_every=10**9),
    )


def with_speed(recipe: Recipe, **changes: Any) -> Recipe:  # noqa: ANN401 - fields of Speed
    """The recipe with other settings of `speed`."""
    return replace(recipe, speed=replace(recipe.speed, **changes))


def write_base(folder: Path, shape: Shape, device: torch.device, seed: int = 0) -> Path:
    """A DynamiCtrl folder: the transformer true to its config, in bfloat16 on CUDA; VAE and text encoder tiny."""
    from transformers import T5Config, T5EncoderModel

    from dynamictrl.animation import DynamiCtrlPipeline
    from dynamictrl.mini.tiny import cogvideox_scheduler, tiny_vae
    from dynamictrl.mini.tokenizer import build_tokenizer
    from dynamictrl.transformer import DynamiCtrlTransformer3DModel

    torch.manual_seed(seed)
    config = shape.config
    tokenizer = build_tokenizer(["a person dances"], max_length=config["max_text_seq_length"])
    text = T5Config(
        vocab_size=len(tokenizer), d_model=config["text_embed_dim"], d_kv=16, d_ff=64, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        empty = DynamiCtrlTransformer3DModel(**config)
    pipeline = DynamiCtrlPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(text),
        vae=tiny_vae("1.5" if config.get("patch_size_t") else "1.0"),
        transformer=empty,
        scheduler=cogvideox_scheduler(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer", "text_encoder", "vae", "scheduler"):
        getattr(pipeline, name).save_pretrained(folder / name)
    pipeline.save_config(folder)
    (folder / "transformer").mkdir(exist_ok=True)
    empty.save_config(folder / "transformer")
    _write_weights(folder / "transformer", empty, device)
    return folder


def _write_weights(folder: Path, empty: torch.nn.Module, device: torch.device) -> None:
    """Random weights for every tensor of a model's state, in files of a few GB with an index."""
    from safetensors.torch import save_file

    shapes = {name: value.shape for name, value in empty.state_dict().items()}
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    files: list[dict[str, torch.Tensor]] = [{}]
    held = 0
    for name, shape in shapes.items():
        if held > FILE_BYTES:
            files.append({})
            held = 0
        value = _weight(name, shape, generator, device, dtype)
        files[-1][name] = value.cpu()
        held += value.nbytes
    names = [f"diffusion_pytorch_model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    if len(files) == 1:
        names = ["diffusion_pytorch_model.safetensors"]
    for name, tensors in zip(names, files, strict=True):
        save_file(tensors, folder / name, metadata={"format": "pt"})
    homes = {key: name for name, tensors in zip(names, files, strict=True) for key in tensors}
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": homes}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def _weight(
    name: str, shape: torch.Size, generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """As a fresh layer has it: matrices by their inputs, norms near one, biases near zero."""
    value = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
    if len(shape) > 1:
        return (value / math.sqrt(math.prod(shape[1:]))).to(dtype) if "pos_embedding" not in name else value.to(dtype)
    return (0.02 * value + (1.0 if "norm" in name and name.endswith("norm.weight") else 0.0)).to(dtype)


def write_data(folder: Path, shape: Shape, base: Path, samples: int = 16, seed: int = 1) -> Path:
    """A data set folder of clips with precomputed encodings, as `python -m pipelines run encode` leaves them."""
    clips = recipe_for(shape, base, device="cpu").clips
    window = Order(seed, clips, ()).window(0)
    by = EncodedBy(window, folder_hash(base / "vae"), folder_hash(base / "text_encoder"), clips.masked_reference)
    info = {
        "schema_version": shards.SCHEMA_VERSION,
        "fps": shape.fps,
        "frames": shape.num_frames,
        "height": shape.height,
        "width": shape.width,
    }
    made = []
    for number in range(samples):
        members = {
            "mp4": b"-",  # nobody looks at the pictures of a clip whose encodings are there
            "pose.npz": b"-",
            "mask.npz": b"-",
            "txt": b"a person dances",
            "json": json.dumps(info).encode(),
            shards.LATENTS: encodings.to_bytes(_random_encodings(shape, seed + number), by),
        }
        made.append(shards.Sample(f"clip{number:06d}", members))
    half = (samples + 1) // 2
    for number, part in enumerate((made[:half], made[half:])):
        shards.write_shard(folder / "shards" / shards.SHARD_NAME.format(number), part)
    shards.write_json(folder / "dataset.json", {"schema_version": shards.SCHEMA_VERSION, "recipe": "benchmark"})
    return folder


def _random_encodings(shape: Shape, seed: int) -> Encodings:
    generator = torch.Generator().manual_seed(seed)
    frames, height, width = (shape.num_frames - 1) // 4 + 1, shape.height // 8, shape.width // 8

    def moments(count: int) -> torch.Tensor:
        mean = torch.randn((16, count, height, width), generator=generator)
        return torch.cat([mean, torch.full_like(mean, -6.0)]).to(torch.bfloat16)

    pixels = torch.randint(0, 256, (3, shape.height, shape.width), generator=generator, dtype=torch.uint8)
    text = (shape.config["max_text_seq_length"], shape.config["text_embed_dim"])
    prompt = torch.randn(text, generator=generator).to(torch.bfloat16)
    return Encodings(moments(frames), moments(frames), moments(1), pixels, prompt)
