"""A publication killed before any of its steps: what readers see then, and what a second run makes of it."""

from pathlib import Path

import pytest

from pipelines.clip import Clip
from pipelines.files.storage import Store
from pipelines.publishing import dataset_files
from pipelines.publishing.publication import Publication
from tests.unit.pipelines.killing import readable, stopped
from tests.unit.pipelines.made_clips import files, made_clip, published

SMALL = 0.03


@pytest.fixture(params=["disk", "bucket"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a data set goes."""
    return str(tmp_path / "set") if request.param == "disk" else request.getfixturevalue("bucket")


def change(publication: Publication) -> list[Clip]:
    """Eight clips published; then one is captioned anew, one is refused, and one has come."""
    work = publication.work
    clips = [made_clip(work, number) for number in range(8)]
    published(publication, clips, SMALL)
    clips[2] = made_clip(work, 2, "someone bows")
    clips[6] = clips[6].reject("too_dark")
    return [*clips, made_clip(work, 40)]


@pytest.mark.parametrize(
    ("out", "begin"),
    [
        ("disk", "new"),
        ("disk", "changed"),
        ("bucket", "changed"),
        pytest.param("bucket", "new", marks=pytest.mark.exhaustive),
    ],
    indirect=["out"],
)
def test_a_publication_killed_at_any_step_and_run_again_ends_with_the_same_bytes(
    out: str, begin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, step = None, 0
    while True:
        publication = Publication(f"{out}-{step}", tmp_path / "work" / str(step))
        clips = change(publication) if begin == "changed" else [made_clip(publication.work, n) for n in range(6)]
        killed = stopped(
            lambda p=publication, c=clips: published(p, c, SMALL), step - 1, monkeypatch, bucket=out.startswith("s3")
        )
        assert readable(publication.store), step
        # A run that starts again knows nothing but what lies on disk.
        published(Publication(publication.out, publication.work), clips, SMALL)
        whole = whole or files(publication)
        assert files(publication) == whole, step
        assert not (publication.work / "plan.json").exists()
        if step and not killed:
            break
        step += 1
    assert step > (4 if out.startswith("s3") else 8)


def test_a_swap_cut_in_two_is_healed_without_the_work_folder(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    publication = Publication(out, tmp_path / "work")
    clips = change(publication)
    for shard in publication.plan([c for c in clips if not c.rejected], SMALL):
        publication.commit(shard)
    content = dataset_files.description("made", {}, 5, clips, publication.records())
    with monkeypatch.context() as patch:
        put = Store.put
        patch.setattr(Store, "put", lambda s, n, c: put(s, n, c) if n == "manifest.parquet" else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publication.finish(content, clips)
    fresh = Publication(out, tmp_path / "another")
    assert fresh.committed().keys() == {clip.key for clip in clips if not clip.rejected}
    assert fresh.plan([c for c in clips if not c.rejected], SMALL) == []
    fresh.finish(content, clips)
    assert readable(fresh.store)
    assert fresh.is_whole()
