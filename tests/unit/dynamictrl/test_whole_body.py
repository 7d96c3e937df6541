"""How the mini detector and pose model are taught: drawings, composed pictures, losses, and the files that come out."""

import numpy as np
import pytest
import torch

from dynamictrl.mini.whole_body.augment import damage, warp
from dynamictrl.mini.whole_body.compose import Wardrobe, backdrops
from dynamictrl.mini.whole_body.detector_model import MiniDetector, cell_grid, detection_loss
from dynamictrl.mini.whole_body.detector_pictures import pictures_of
from dynamictrl.mini.whole_body.held_out import held_out_scenes, scene
from dynamictrl.mini.whole_body.layers import follow
from dynamictrl.mini.whole_body.people import draw_people
from dynamictrl.mini.whole_body.pose_model import HEIGHT, WIDTH, MiniPose, normalise, pose_loss
from dynamictrl.mini.whole_body.pose_pictures import crop_matrices, crops_of
from dynamictrl.mini.whole_body.quality import average_precision, detector_quality, pose_quality
from dynamictrl.mini.whole_body.stream import Bank, Canvas, FigureStream, stream
from dynamictrl.mini.whole_body.training import Feeder, Settings, fit
from dynamictrl.poses.dwpose_pictures import crop_person

CPU = torch.device("cpu")
SMALL = Canvas(height=112, width=96, backdrop=96)


@pytest.fixture(scope="module")
def bank() -> Bank:
    bank = Bank(24, 6, CPU)
    figures = FigureStream(3, SMALL, characters=3, frames=4, backdrops=3)
    for index in range(2):
        drawn = figures.draw(np.random.default_rng([3, index]))
        bank.add({name: torch.from_numpy(values) for name, values in drawn.items()})
    return bank


@pytest.fixture(scope="module")
def wardrobe() -> Wardrobe:
    return Wardrobe.make(CPU, count=3)


def test_a_figure_fills_its_canvas_and_its_joints_lie_on_it():
    people = draw_people(np.random.default_rng(1), 6, 224, 192)
    size = people["boxes"][:, 2:] - people["boxes"][:, :2]
    assert np.all((size[:, 1] > 0.9 * 224) | (size[:, 0] > 0.9 * 192))
    assert people["points"].min() > -8
    for part, points, scores in zip(people["part"], people["points"], people["scores"], strict=True):
        x, y = points[scores > 0.9].astype(int).clip(0, (191, 223)).T
        near = np.max([part[(y + dy).clip(0, 223), (x + dx).clip(0, 191)] for dx in (-1, 0, 1) for dy in (-1, 0, 1)], 0)
        assert np.mean(near > 0) > 0.99


def test_equal_seeds_draw_equal_figures():
    one, same = (FigureStream(5, SMALL, 1, 2, 1).draw(np.random.default_rng([5, 0])) for _ in range(2))
    assert all(np.array_equal(one[name], same[name]) for name in one)


def test_a_full_bank_forgets_its_oldest_drawings():
    bank = Bank(3, 1, CPU)
    for value in range(4):
        bank.add({"paint": torch.full((1, 2, 2, 3), value, dtype=torch.uint8)})
    assert bank.filled("paint") == 3
    assert bank.kept["paint"][:, 0, 0, 0].tolist() == [3, 1, 2]


def test_crops_show_the_person_where_the_joints_say(bank, wardrobe):
    torch.manual_seed(0)
    crops, points, scores = crops_of(bank, wardrobe, 8)
    assert crops.shape == (8, 3, HEIGHT, WIDTH)
    assert 0 <= float(crops.min()) <= float(crops.max()) <= 255.5
    inside = (points[..., 0] >= 0) & (points[..., 0] < WIDTH) & (points[..., 1] >= 0) & (points[..., 1] < HEIGHT)
    assert inside[scores > 0.9].float().mean() > 0.9


def test_a_training_crop_is_what_the_runner_would_cut():
    torch.manual_seed(0)
    held = scene(7, 0)
    frame, box = held["frames"][0], held["boxes"][0, 0]
    inverse, forward = crop_matrices(torch.from_numpy(box)[None])
    # Undo what the training varies: position, size and angle of the crop.
    size = (box[2:] - box[:2]) * 1.25
    scale = max(size[1], size[0] * HEIGHT / WIDTH) / HEIGHT
    plain = torch.tensor([[[scale, 0, 0], [0, scale, 0]]], dtype=torch.float32)
    plain[0, :, 2] = torch.from_numpy((box[:2] + box[2:]) / 2) - scale * torch.tensor([WIDTH / 2, HEIGHT / 2])
    crop = normalise(warp(torch.from_numpy(frame).permute(2, 0, 1)[None].float(), plain, HEIGHT, WIDTH))
    expected, _ = crop_person(frame, box.astype(np.float64))
    assert float((crop[0] - torch.from_numpy(expected)).abs().mean()) < 0.02
    there = torch.einsum("nij,nkj->nki", forward[:, :, :2], torch.ones(1, 1, 2)) + forward[:, None, :, 2]
    back = torch.einsum("nij,nkj->nki", inverse[:, :, :2], there) + inverse[:, None, :, 2]
    torch.testing.assert_close(back, torch.ones(1, 1, 2), atol=1e-3, rtol=0)


def test_boxes_of_composed_pictures_lie_in_the_frame(bank, wardrobe):
    torch.manual_seed(0)
    pictures, boxes, ignored = pictures_of(bank, wardrobe, 12)
    assert pictures.shape == (12, 3, 320, 320)
    shown = boxes[boxes[..., 2] > 0]
    assert 5 < len(shown) < 36
    assert float(boxes.min()) >= 0
    assert float(boxes.max()) <= 640
    both = (boxes[..., 2] > 0) & (ignored[..., 2] > 0)
    assert not both.any()


def test_some_crops_show_nobody_and_want_no_joint(bank, wardrobe):
    torch.manual_seed(2)
    counts = torch.cat([(crops_of(bank, wardrobe, 8)[2] > 0).sum(dim=1) for _ in range(3)])
    assert 0 < (counts == 0).sum() < 12


def test_pictures_asked_for_without_people_have_no_boxes(bank, wardrobe):
    _, boxes, ignored = pictures_of(bank, wardrobe, 6, (1.0, 0.0, 0.0, 0.0))
    assert float(boxes.abs().sum() + ignored.abs().sum()) == 0


def test_damage_keeps_the_shape_and_the_range(bank):
    torch.manual_seed(0)
    for _ in range(6):
        harmed = damage(backdrops(bank, 8, 64, 48), groups=4)
        assert harmed.shape == (8, 3, 64, 48)
        assert -0.5 < float(harmed.min()) <= float(harmed.max()) < 255.5


def test_cells_over_an_ignored_person_cost_nothing():
    places, strides = cell_grid(CPU)
    cells = torch.zeros(1, len(places), 5)
    nobody, everywhere = torch.zeros(1, 1, 4), torch.tensor([[[0.0, 0.0, 640.0, 640.0]]])
    assert float(detection_loss(cells, nobody, everywhere, places, strides)) == 0
    assert float(detection_loss(cells, nobody, nobody, places, strides)) > 100


def test_a_more_cautious_detector_scores_lower():
    detector = MiniDetector().eval()
    picture = torch.full((1, 3, 640, 640), 90.0)
    with torch.no_grad():
        before = detector.cells(picture)[..., 4]
        detector.lower(0.5)
        torch.testing.assert_close(detector.cells(picture)[..., 4], before - 0.5)


def test_the_pose_model_learns_one_batch_by_heart(bank, wardrobe):
    torch.manual_seed(0)
    crops, points, scores = crops_of(bank, wardrobe, 2)
    model, crops = MiniPose(token=32), normalise(crops)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = pose_loss(model, crops, points, scores)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_a_run_stops_at_its_steps_and_returns_averaged_weights():
    feeder = Feeder(stream(FigureStream(1, SMALL, 1, 2, 1), 0))
    bank = Bank(4, 2, CPU)
    feeder.fill(bank, 2)
    model = torch.nn.Linear(2, 1)
    start = model.weight.detach().clone()
    settings = Settings(device="cpu", max_steps=3, batch=2)
    average, outcome = fit(model, lambda: model(torch.ones(1, 2)).sum(), bank, feeder, settings, lambda _: {})
    feeder.end()
    assert outcome.steps == 3
    assert outcome.shown == 6
    assert not torch.equal(average.weight, start)
    assert not torch.equal(average.weight, model.weight)


def test_a_failing_artist_fails_the_run():
    def broken():
        yield from ()
        raise ValueError("the pencil broke")

    with pytest.raises(ValueError, match="pencil"):
        Feeder(broken()).fill(Bank(4, 2, CPU), 2)


def test_the_average_follows_at_the_pace_given():
    kept, new = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    new.weight.data.fill_(3.0)
    new.num_batches_tracked += 5
    follow(kept, new, 0.75)
    assert kept.weight.tolist() == [1.5, 1.5]
    assert int(kept.num_batches_tracked) == 5


def test_held_out_scenes_are_the_same_in_any_process():
    here, there = held_out_scenes(1, 1, 1), held_out_scenes(1, 1, 1, workers=1)
    assert not here.empty[0]["boxes"].any()
    for kind in ("people", "empty", "small"):
        (one,), (other,) = getattr(here, kind), getattr(there, kind)
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_small_person_is_small_and_where_its_box_is():
    small = held_out_scenes(0, 0, 1).small[0]
    boxes = small["boxes"][:, 0]
    share = (boxes[:, 3] - boxes[:, 1]) / small["frames"].shape[1]
    assert np.all((share > 0.07) & (share < 0.31))
    assert np.all(boxes[:, 2:] <= small["frames"].shape[2:0:-1])


def test_a_detector_that_finds_nothing_has_no_precision_and_no_false_boxes():
    quality = detector_quality(lambda _: [np.zeros((1, 8400, 85), np.float32)], held_out_scenes(1, 1, 1))
    assert quality["ap50"] == quality["ap50_small"] == 0
    assert quality["false_boxes_per_empty_frame"] == 0


def test_a_pose_model_that_points_at_a_corner_hits_nothing():
    simcc = [np.eye(1, bins, dtype=np.float32)[None].repeat(133, axis=1) for bins in (576, 768)]
    assert pose_quality(lambda _: simcc, held_out_scenes(1).people)["pck_body"] < 0.05


def test_a_false_box_before_a_true_one_halves_precision():
    truth = [np.array([[0.0, 0.0, 10.0, 10.0]])]
    found = [(0, 0.9, np.array([50.0, 50.0, 60.0, 60.0])), (0, 0.8, np.array([0.0, 0.0, 10.0, 10.0]))]
    assert average_precision(found, truth, 0.5) == pytest.approx(0.5)
    assert average_precision(found[1:], truth, 0.5) == pytest.approx(1.0)
