"""How fast clips are captioned on this machine's GPU, and how busy the GPU is meanwhile: a table.

    PYTHONPATH=. python tests/benchmarks/caption_throughput.py [--batch 32] [--seconds 60]
    PYTHONPATH=. python tests/benchmarks/caption_throughput.py --device cpu --tiny

The model is of Qwen2-VL-7B's class and sizes with random weights, made on the GPU; its words mean nothing, its speed
is the real one's. Every clip is an mp4 (1280x720 or 720x1280, 5 s at 25 fps) that the stage `Caption` decodes; every
answer has as many tokens as allowed. Rows:

stage             `Caption.process_many`: the product, decoding by a recorded CUDA graph
stage, no graph   the same with each word launched from Python
one by one        a clip is read, prepared on the processor, and answered by transformers' `generate`, then the next

"GPU busy" is what NVML reports, sampled from the first batch on. "kernels" is the share of time in which at least one
kernel or copy runs on the GPU, from a profile of further batches (which slows words down a little).
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynamictrl.captions.captioning import DEFAULT_PROMPT, Manner
from dynamictrl.captions.qwen_captioning import Qwen2VLCaptioner
from dynamictrl.media.video import read_video, write_video
from pipelines.clip import Clip
from pipelines.stages.caption import Caption, footage_of

NAME = "Qwen2-VL-7B, random weights"
FPS, SECONDS = 25, 5.0
TEXT_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
VISION_7B = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 3584}
TEXT_TINY = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION_TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64}
VOCABULARY, FIRST_SPECIAL = 152064, 151643
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
IDS: dict[str, Any] = {"image_token_id": 151655, "video_token_id": 151656}
IDS |= {"vision_start_token_id": 151652, "vision_end_token_id": 151653}
ENDS = {"bos_token_id": 151643, "eos_token_id": 151645}
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% for message in messages %}<|im_start|>user\n"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def build_preparation() -> Any:
    """Qwen2-VL's preparation with its own special ids; every other word is a stand-in."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"Ġw{index}" for index in range(FIRST_SPECIAL - len(letters)))]
    plain = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    plain.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    plain.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    assert tokenizer.convert_tokens_to_ids("<|video_pad|>") == 151656, "not Qwen2-VL's ids"
    return Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)


def build_model(device: str, *, tiny: bool) -> Any:
    """A Qwen2-VL with random weights, made where it is used."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    sections = [2, 3, 3] if tiny else [16, 24, 24]
    text, vision = (TEXT_TINY, VISION_TINY) if tiny else (TEXT_7B, VISION_7B)
    config = Qwen2VLConfig(
        text_config={
            **text,
            "num_key_value_heads": 2 if tiny else 4,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e6},
            **ENDS,
        },
        vision_config={**vision, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
        **IDS,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        model: Any = Qwen2VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = [151645, 151643]
    model.generation_config.pad_token_id = 151643
    return model.eval()


def write_files(folder: Path, count: int, *, tiny: bool) -> list[tuple[Path, int, int, int]]:
    """Distinct mp4 files, each with its frames, height and width; every second one upright."""

    def write(seed: int) -> tuple[Path, int, int, int]:
        height, width = (72, 128) if tiny else (720, 1280)
        height, width = (height, width) if seed % 2 == 0 else (width, height)
        frames = round((1.0 if tiny else SECONDS) * FPS)
        rng = np.random.default_rng(seed)
        blocks = rng.integers(0, 255, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        still = np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width]
        path = folder / f"{seed}.mp4"
        write_video(path, np.stack([np.roll(still, 3 * index, axis=1) for index in range(frames)]), FPS)
        return path, frames, height, width

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4)) as writers:
        return list(writers.map(write, range(count)))


def clips_of(files: list[tuple[Path, int, int, int]], count: int, work: Path) -> list[Clip]:
    """Clips as the stage before hands them over; files are used again under other keys."""
    clips = []
    for index in range(count):
        path, frames, height, width = files[index % len(files)]
        known: dict[str, Any] = {"frames": frames, "height": height, "width": width, "work": str(work), "fps": FPS}
        clip = Clip(source_sha256=f"{index:064x}"[::-1], **known).at(0.0, frames / FPS)
        clip.folder.mkdir(parents=True, exist_ok=True)
        if not clip.file("mp4").exists():
            os.link(path, clip.file("mp4"))
        clips.append(clip.with_file("mp4"))
    return clips


@dataclass
class BusyGpu:
    """Samples NVML's utilisation, with times, while it is entered."""

    every: float = 0.05
    samples: list[tuple[float, float]] = field(default_factory=list)

    def __enter__(self) -> BusyGpu:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            pynvml = importlib.import_module("pynvml")
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            while not self._stop.wait(self.every):
                self.samples.append((time.perf_counter(), float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)))
        except Exception as problem:
            print(f"  (NVML cannot be read: {type(problem).__name__}: {problem})")

    def between(self, start: float, end: float) -> str:
        found = [value for when, value in self.samples if start <= when <= end]
        return f"{np.mean(found):.1f} %" if found else "-"


@dataclass
class Watched:
    """A captioner's decoder that notes when it was at work."""

    decoder: Any
    spans: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, *given: Any) -> Any:
        start = time.perf_counter()
        said = self.decoder(*given)
        self.spans.append((start, time.perf_counter()))
        return said


@dataclass(frozen=True)
class Row:
    """One way of captioning, measured."""

    name: str
    clips: int
    tokens: int
    seconds: float
    busy: str = "-"
    kernels: str = "-"
    note: str = ""

    def print(self, clip_seconds: float) -> None:
        rate = self.clips / self.seconds
        hours = rate * clip_seconds * 24
        print(
            f"{self.name:<16} {self.clips:>5} {self.seconds:>8.1f} {rate:>8.2f} {self.tokens / self.seconds:>9.0f} "
            f"{hours:>11.0f} {self.busy:>9} {self.kernels:>9}  {self.note}",
            flush=True,
        )


NUMBERS = (
    ("batch", 32, "clips at once"), ("readers", 12, "threads that decode ahead"), ("tokens", 128, "of each answer"),
    ("seconds", 60, "about how long the stage is measured"), ("files", 16, "distinct mp4 files"),
    ("naive", 4, "clips done one by one"),
)  # fmt: skip
HEAD = "way              clips  seconds  clips/s  tokens/s  h/GPU-day  GPU busy   kernels"


def run_stage(stage: Caption, watched: Watched, clips: list[Clip], name: str) -> Row:
    """From the first batch's start to the last answer; the seconds before it (the first files) are in the note."""
    watched.spans.clear()
    begun = time.perf_counter()
    with BusyGpu() as gpu:
        done = list(stage.process_many(clips))
    start, end = watched.spans[0][0], watched.spans[-1][1]
    assert [clip.key for clip in done] == [clip.key for clip in clips], "an answer went to another clip"
    waits = sum(b[0] - a[1] for a, b in zip(watched.spans, watched.spans[1:], strict=False))
    tokens = round(sum(clip.scores["caption_tokens"] for clip in done))
    note = f"first files {start - begun:.1f} s, between batches {waits:.2f} s of {len(watched.spans)} batches"
    return Row(name, len(done), tokens, end - start, gpu.between(start, end), "-", note)


def kernel_share(work: Callable[[], Any]) -> str:
    """Share of the time between the first and the last kernel in which some kernel or copy ran."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            work()
            torch.cuda.synchronize()
        events: Any = profiled.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    except (AttributeError, RuntimeError) as problem:
        return f"({problem})"
    spans = [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.device_type() == torch.autograd.DeviceType.CUDA and event.duration_ns() > 0
    ]
    return f"{100 * covered(spans):.1f} %" if spans else "-"


def covered(spans: list[tuple[int, int]]) -> float:
    """Share of the time from the first start to the last end that lies in at least one span."""
    spans = sorted(spans)
    busy, last = 0, spans[0][0]
    for start, end in spans:
        busy += max(0, end - max(start, last))
        last = max(last, end)
    return busy / (last - spans[0][0])


def one_by_one(captioner: Qwen2VLCaptioner, clips: list[Clip], tokens: int) -> Row:
    """What fifty lines of a user's own would do: read, prepare, `generate`, next."""
    model, preparation = captioner.model, captioner.preparation
    content = [{"type": "video"}, {"type": "text", "text": DEFAULT_PROMPT}]
    question = preparation.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    config = model.model.language_model.config
    ours, config._attn_implementation = config._attn_implementation, "sdpa"
    start = time.perf_counter()
    with BusyGpu() as gpu:
        for clip in clips:
            frames = read_video(clip.file("mp4")).frames
            shown = torch.from_numpy(captioner.rules.look(clip.key, frames).pixels_FHW3).permute(0, 3, 1, 2)
            inputs = preparation(
                text=[question], videos=[shown], do_resize=False, do_sample_frames=False, return_tensors="pt"
            ).to(captioner.device)
            with torch.inference_mode():
                model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    end = time.perf_counter()
    config._attn_implementation = ours
    return Row("one by one", len(clips), len(clips) * tokens, end - start, gpu.between(start, end))


def measure(options: argparse.Namespace, folder: Path) -> None:
    cuda, begun = options.device == "cuda", time.perf_counter()
    files = write_files(folder, 4 if options.tiny else options.files, tiny=options.tiny)
    written = time.perf_counter()
    model, preparation = build_model(options.device, tiny=options.tiny), build_preparation()
    sizes: dict[str, Any] = {"max_frames": 4, "max_pixels": 28 * 28 * 12} if options.tiny else {}
    stage = Caption(
        NAME, second_prompt="", max_new_tokens=options.tokens, required=False, device=options.device,
        batch=options.batch, readers=options.readers, **sizes,
    )  # fmt: skip
    captioner = Qwen2VLCaptioner(
        NAME, options.device, batch=stage.batch, readers=stage.readers, max_frames=stage.max_frames,
        max_pixels=stage.max_pixels, loaded=(model, preparation),
    )  # fmt: skip
    # Random weights would otherwise end an answer anywhere.
    captioner.manner = Manner(stage.prompt, options.tokens, options.tokens)
    stage.__dict__["model"] = captioner
    watched = captioner.__dict__["_decoder"] = Watched(captioner._decoder)
    parameters = sum(p.numel() for p in model.parameters()) / 1e9
    print(f"{written - begun:.1f} s for {len(files)} files, {time.perf_counter() - written:.1f} s for the model "
          f"({parameters:.2f} billion parameters)")  # fmt: skip

    def clips(batches: int) -> list[Clip]:
        return clips_of(files, batches * options.batch, folder / "work")

    tokens = captioner.rules.tokens(footage_of(clips(1)[0]))
    run_stage(stage, watched, clips(1), "warm-up")
    again = run_stage(stage, watched, clips(1), "one batch")
    print(f"{tokens} video tokens a clip, {options.tokens} tokens an answer, batches of {options.batch}")
    print(HEAD)
    clip_seconds = files[0][1] / FPS
    again.print(clip_seconds)
    batches = max(2, min(24, round(options.seconds / again.seconds)))
    main = run_stage(stage, watched, clips(batches), "stage")
    kernels = kernel_share(lambda: list(stage.process_many(clips(2)))) if cuda else "-"
    Row(**{**vars(main), "kernels": kernels}).print(clip_seconds)
    if cuda:
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        watched.decoder._graphs, watched.decoder._room = False, None
        run_stage(stage, watched, clips(2), "stage, no graph").print(clip_seconds)
    naive = one_by_one(captioner, clips(1)[: options.naive], options.tokens)
    naive.print(clip_seconds)
    print(f"GPU busy after warm-up: {main.busy} by NVML, {kernels} by kernels (goal: 90 %)")
    print(f"{main.clips / main.seconds / (naive.clips / naive.seconds):.1f} times the clips of one by one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model and tiny clips: checks the script")
    for name, default, meaning in NUMBERS:
        parser.add_argument(f"--{name}", type=int, default=default, help=meaning)
    options = parser.parse_args()
    import transformers

    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} CPU cores"
    print(f"{NAME if not options.tiny else 'tiny model'} on {where}, torch {torch.__version__}, "
          f"transformers {transformers.__version__}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
