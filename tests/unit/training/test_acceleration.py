"""What is recomputed, compiled and grouped changes nothing that a run learns."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dynamictrl.acceleration import attention_kernels
from dynamictrl.acceleration.attention_kernels import Choice
from dynamictrl.errors import ConfigError
from dynamictrl.lora import add_lora
from dynamictrl.mini.tiny import tiny_transformer
from dynamictrl.positions import rotary_positions
from dynamictrl.recomputation import Recompute, attention_operators
from dynamictrl.transformer import DynamiCtrlTransformer3DModel
from training.config import Recipe, Run
from training.engine import acceleration, float8, parallel
from training.engine.parallel import Place
from training.planning.memory import Kept
from training.recipes import tiny_on_cpu
from training.trainer import Trainer

POLICIES: list[Recompute] = ["none", "cheap", "attention", "all"]


class AttentionCalls(TorchDispatchMode):
    """Counts the attention kernels that run forward."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204 - torch's own shape
        self.count += func in attention_operators()
        return func(*args, **(kwargs or {}))


def a_transformer(layers: int = 3, pose_control: str = "padaln") -> DynamiCtrlTransformer3DModel:
    torch.manual_seed(0)
    return tiny_transformer("1.5", pose_control, num_layers=layers).train()


def blocks_of(model: DynamiCtrlTransformer3DModel) -> list[Any]:
    return list(model.transformer_blocks)


def predict(model: DynamiCtrlTransformer3DModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    video = torch.randn((1, 4, 32, 12, 8), generator=generator)
    text = torch.randn((1, 16, 32), generator=generator)
    pose = torch.randn((1, 4, 16, 12, 8), generator=generator)
    rotary = rotary_positions(model.config, 4, 12, 8, "cpu")
    return model(
        video, text, torch.tensor([500]), pose, ofs=torch.full((1,), 2.0), image_rotary_emb=rotary
    ).sample  # fmt: skip


def learn(model: DynamiCtrlTransformer3DModel) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients of one pass."""
    model.zero_grad()
    loss = predict(model).square().mean()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def assert_same(found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], wanted[0])
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max() + 1))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_the_same_bits(policy: Recompute):
    model = a_transformer()
    loss, gradients = learn(model)
    for block in blocks_of(model):
        block.recompute = policy
    again, others = learn(model)

    assert torch.equal(loss, again)
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


@pytest.mark.parametrize(("policy", "more"), [("none", 0), ("cheap", 0), ("attention", 0), ("all", 3)])
def test_attention_runs_again_in_the_backward_pass_only_where_all_is_recomputed(policy: Recompute, more: int):
    model = a_transformer(layers=3)
    for block in blocks_of(model):
        block.recompute = policy
    with AttentionCalls() as forward:
        loss = predict(model).square().mean()
    with AttentionCalls() as backward:
        loss.backward()

    assert forward.count == 3
    assert backward.count == more


def test_what_a_block_keeps_falls_from_policy_to_policy():
    def kept_bytes(policy: Recompute) -> int:
        model, held = a_transformer(), {}
        for block in blocks_of(model):
            block.recompute = policy

        def keep(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            predict(model)
        return sum(held.values())

    whole, inputs = kept_bytes("none"), kept_bytes("all")
    assert inputs < 0.6 * whole


def test_compiled_blocks_learn_the_same_and_share_a_graph_by_kind(fresh_compiler: None):
    from torch._dynamo.utils import counters

    model = a_transformer(layers=6)
    acceleration.set_recomputation(model, Kept(whole=2, attention=2, inputs=2))
    wanted, keys = learn(model), list(model.state_dict())
    counters.clear()
    acceleration.compile_blocks(model, backend="aot_eager")

    assert_same(learn(model), wanted)
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]
    assert list(model.state_dict()) == keys


def test_compiled_blocks_take_clips_of_another_size(fresh_compiler: None):
    model = a_transformer(layers=2)
    acceleration.set_recomputation(model, Kept(whole=1, attention=1, inputs=0))

    def of_size(height: int) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        video, pose = (torch.randn((1, 4, c, height, 8), generator=generator) for c in (32, 16))
        rotary = rotary_positions(model.config, 4, height, 8, "cpu")
        text, ofs = torch.ones((1, 16, 32)), torch.full((1,), 2.0)
        return model(video, text, torch.tensor([9]), pose, ofs=ofs, image_rotary_emb=rotary).sample

    wanted = [of_size(height).detach() for height in (12, 8)]
    acceleration.compile_blocks(model, backend="aot_eager")
    for height, plain in zip((12, 8), wanted, strict=True):
        found = of_size(height)
        found.sum().backward()
        torch.testing.assert_close(found.detach(), plain)


def test_a_lora_learns_the_same_in_compiled_and_recomputed_blocks(fresh_compiler: None):
    model = a_transformer(layers=2)
    model.requires_grad_(False)
    add_lora(model, rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    wanted = learn(model)
    acceleration.set_recomputation(model, Kept(whole=0, attention=1, inputs=1))
    acceleration.compile_blocks(model, backend="aot_eager")

    assert_same(learn(model), wanted)
    assert all("lora" in name for name in wanted[1])


def test_the_flag_of_diffusers_still_recomputes_for_those_who_set_it():
    model = a_transformer()
    wanted = learn(model)
    model.enable_gradient_checkpointing()
    assert_same(learn(model), wanted)


def test_the_recipe_chooses_the_policy_of_each_block_and_auto_keeps_all_on_the_cpu():
    recipe, place, model = tiny_on_cpu(), Place(0, 1, torch.device("cpu")), a_transformer()

    def prepared(recompute: str) -> list[str]:
        acceleration.prepare(model, replace(recipe, speed=replace(recipe.speed, recompute=recompute)), place)
        return [block.recompute for block in blocks_of(model)]

    assert prepared("all") == ["all"] * 3
    assert prepared("attention") == ["attention"] * 3
    assert prepared("auto") == ["none"] * 3
    assert prepared("none") == ["none"] * 3


def test_blocks_are_compiled_on_cuda_but_not_under_zero_3():
    recipe = replace(Recipe(), workers=replace(Recipe().workers, zero_stage=2))
    assert acceleration.compiles(recipe)
    assert not acceleration.compiles(replace(recipe, workers=replace(recipe.workers, zero_stage=3)))
    assert not acceleration.compiles(tiny_on_cpu())
    assert not acceleration.compiles(replace(recipe, speed=replace(recipe.speed, compile_blocks=False)))


def test_the_fastest_attention_kernel_is_chosen_of_those_that_run():
    shape = (1, 2, 64, 16)
    times = attention_kernels.probe(shape, torch.device("cpu"), torch.float32, ("cudnn", "flash", "math"))

    ran = {Choice(kernel, heads_first) for kernel in ("flash", "math") for heads_first in (False, True)}
    assert set(times) == ran  # cuDNN has no CPU
    assert all(took > 0 for took in times.values())
    tokens_first, heads_first = Choice("cudnn", False), Choice("cudnn", True)
    assert attention_kernels.fastest({tokens_first: 0.034, heads_first: 0.031, Choice("flash", False): 0.048}) == (
        heads_first
    )
    assert attention_kernels.fastest({}) is None


def test_attention_with_heads_first_gives_the_same_numbers():
    model = a_transformer()
    wanted = learn(model)
    for block in blocks_of(model):
        block.attn1.processor.heads_first = True
    assert_same(learn(model), wanted)


def test_a_preferred_kernel_comes_first_and_the_others_stay_for_where_it_cannot_run():
    from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

    q = torch.randn(1, 2, 64, 16)
    wanted, usual = nn.functional.scaled_dot_product_attention(q, q, q), _cur_sdpa_kernel_backends(with_priority=True)
    try:
        attention_kernels.prefer("efficient")
        attention_kernels.prefer("cudnn")
        order = _cur_sdpa_kernel_backends(with_priority=True)
        assert order[0] == SDPBackend.CUDNN_ATTENTION
        assert set(order) == set(attention_kernels.KERNELS.values())
        torch.testing.assert_close(nn.functional.scaled_dot_product_attention(q, q, q), wanted)
    finally:
        attention_kernels.prefer_default()
    assert _cur_sdpa_kernel_backends(with_priority=True) == usual


def test_float8_is_refused_with_the_way_out_where_there_is_no_gpu_for_it():
    with pytest.raises(ConfigError, match="leave float8 off"):
        float8.convert(a_transformer(), torch.device("cpu"))


def test_float8_takes_the_linear_layers_of_attention_and_feed_forward_alone():
    model = tiny_transformer("1.5", num_layers=1, num_attention_heads=2, attention_head_dim=16)
    taken = [name for name, module in model.named_modules() if float8.is_converted(module, name)]
    block = "transformer_blocks.0"
    layers = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
    assert taken == [f"{block}.{layer}" for layer in layers]


def test_parameters_go_in_groups_of_a_size_in_their_order():
    parameters = [nn.Parameter(torch.zeros(count)) for count in (3, 4, 1, 9, 2)]
    groups = parallel.parameter_groups(parameters, 5)
    assert [[p.numel() for p in group] for group in groups] == [[3, 4], [1, 9, 2]]
    assert [len(group) for group in parallel.parameter_groups(parameters[:1], 5)] == [1]


@pytest.mark.parametrize(("precision", "zero_stage"), [("fp32", 2), ("bf16", 2), ("bf16", 1)])
def test_an_optimizer_in_groups_learns_what_one_group_learns(
    tiny_model: Path, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision, zero_stage
):  # fmt: skip
    small = tiny_on_cpu()
    recipe = replace(
        small,
        model=replace(small.model, base=str(tiny_model)),
        workers=replace(small.workers, precision=precision, zero_stage=zero_stage),
        optimization=replace(small.optimization, steps=3, micro_batch_size=1),
    )
    weights = []
    for elements in (10**9, 10_000):
        monkeypatch.setattr(parallel, "GROUP_ELEMENTS", elements)
        run = Run(name="groups", data=small_dataset, out=tmp_path / str(elements), recipe=recipe)
        run.out.mkdir()
        trainer = Trainer(run, parallel.join(recipe), [], None)
        for number in range(2):
            trainer.step(number)
        weights.append(parallel.gather_weights(trainer._engine))
        optimizer: Any = trainer._engine.optimizer
        assert (len(optimizer.param_groups) > 1) == (elements == 10_000)

    one, several = weights
    assert one is not None
    assert several is not None
    assert one.keys() == several.keys()
    for name, weight in one.items():
        torch.testing.assert_close(several[name], weight, rtol=1e-5, atol=1e-6)


def test_gradients_of_one_micro_batch_are_copied_into_their_sums_and_of_several_added(
    tiny_model: Path, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from training.engine import gradient_sums

    small = tiny_on_cpu()
    recipe = replace(
        small,
        model=replace(small.model, base=str(tiny_model)),
        workers=replace(small.workers, precision="bf16"),
        optimization=replace(small.optimization, steps=2, batch_size=2, micro_batch_size=2),
    )
    norms = []
    for name, copies in (("copied", gradient_sums.write_once), ("added", lambda engine: False)):
        monkeypatch.setattr(gradient_sums, "write_once", copies)
        run = Run(name="sums", data=small_dataset, out=tmp_path / name, recipe=recipe)
        run.out.mkdir()
        trainer = Trainer(run, parallel.join(recipe), [], None)
        norms.append([(step["loss"], step["grad_norm"]) for step in map(trainer.step, range(2))])
        assert ("_add_to_grad_partition_buffer" in vars(trainer._engine.optimizer)) == (name == "copied")

    assert norms[0] == norms[1]


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_every_policy_learns_the_same_under_deepspeed(
    tiny_model: Path, small_dataset: Path, tmp_path: Path, zero_stage: Literal[2, 3]
):
    small = tiny_on_cpu()
    courses = []
    for policy in ("none", "attention", "all"):
        recipe = replace(
            small,
            model=replace(small.model, base=str(tiny_model)),
            workers=replace(small.workers, zero_stage=zero_stage),
            speed=replace(small.speed, recompute=policy),
        )
        run = Run(name="policy", data=small_dataset, out=tmp_path / policy, recipe=recipe)
        run.out.mkdir()
        trainer = Trainer(run, parallel.join(recipe), [], None)
        courses.append([(step["loss"], step["grad_norm"]) for step in map(trainer.step, range(2))])

    assert courses[1] == courses[0]
    assert courses[2] == courses[0]
