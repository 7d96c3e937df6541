"""What is signed into a clip, by whom, and that a changed byte is noticed; the certificate; the manifest; `verify`."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dynamictrl.errors import ConfigError, DynamiCtrlError, InputError
from dynamictrl.media.invisible_mark import mark
from dynamictrl.media.video import read_video, write_video
from dynamictrl.mini.marionettes import sample_clip
from serving.__main__ import main
from serving.config import Service
from serving.jobs.job import Settings
from serving.recipes import mini
from serving.results.certificates import DEVELOPMENT, make_identity, open_identity, open_mark_key, provenance_word
from serving.results.finishing import Finisher, payload_of
from serving.results.manifest import Rendering, frames_hash, read_manifest, to_manifest
from serving.results.provenance import SOURCE_TYPE, Claim, Notary, read_credentials

SETTINGS = Settings(
    prompt="a private wish", width=128, height=192, num_frames=9, fps=12.0, resample=False, num_inference_steps=3,
    guidance_scale=3.0, seed=41
)  # fmt: skip
VIDEO = "video_0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return sample_clip(np.random.default_rng(1), num_frames=9, height=192, width=128, fps=12).frames


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return replace(mini(), data_folder=tmp_path / "data")


def rendering(frames: NDArray[np.uint8]) -> Rendering:
    return Rendering(
        video_id=VIDEO, model="m", model_version="abc", is_mini=True, settings=SETTINGS, frames=frames,
        inputs={"input_reference": "1" * 64, "pose_video": "2" * 64}, engine={"device": "cpu", "threads": 1}
    )  # fmt: skip


def finished(service: Service, folder: Path, frames: NDArray[np.uint8]) -> str:
    service.data_folder.mkdir(parents=True, exist_ok=True)
    return Finisher(service, service.data_folder).finish(folder, frames, 12.0, None, rendering(frames)).manifest


def test_every_file_says_what_made_it_from_what_and_keeps_the_prompt_to_itself(
    service: Service, tmp_path: Path, frames: NDArray[np.uint8]
):
    manifest = finished(service, tmp_path / "out", frames)
    for name in ("video.mp4", "thumbnail.webp", "spritesheet.jpg"):
        found = read_credentials(tmp_path / "out" / name)
        assert found is not None
        assert (found.is_intact, found.is_development, found.generator) == (True, True, "DynamiCtrl/0.1.0")
        assert [(a["action"], a["digitalSourceType"]) for a in found.actions] == [("c2pa.created", SOURCE_TYPE)]
        assert found.inputs == {"input_reference": "1" * 64, "pose_video": "2" * 64}
        said = found.rendering
        assert (said["job"], said["model"]["version"], said["settings"]["seed"]) == (VIDEO, "abc", 41)
        assert said["prompt_sha256"] == hashlib.sha256(b"a private wish").hexdigest()
        assert said["manifest_sha256"] == hashlib.sha256(manifest.encode()).hexdigest()
        assert "person" in said
        assert b"private wish" not in (tmp_path / "out" / name).read_bytes()
    assert read_video(tmp_path / "out" / "video.mp4").frames.shape == frames.shape


def test_the_prompt_is_said_where_that_is_configured(service: Service, tmp_path: Path, frames: NDArray[np.uint8]):
    finished(replace(service, provenance_prompt=True), tmp_path / "out", frames)
    found = read_credentials(tmp_path / "out" / "video.mp4")
    assert found is not None
    assert found.rendering["prompt"] == "a private wish"


def test_a_changed_byte_is_noticed_and_so_is_a_clip_that_was_encoded_again(
    service: Service, tmp_path: Path, frames: NDArray[np.uint8]
):
    finished(service, tmp_path, frames)
    whole = (tmp_path / "video.mp4").read_bytes()
    at = whole.index(b"mdat")
    for place in (at + 40, len(whole) - 5, whole.index(b"moov") + 60, whole.index(b"trainedAlgorithmicMedia") + 3):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "changed.mp4").write_bytes(changed)
        found = read_credentials(tmp_path / "changed.mp4")
        assert found is None or not found.is_intact, place
    write_video(tmp_path / "again.mp4", read_video(tmp_path / "video.mp4").frames, 12.0)
    assert read_credentials(tmp_path / "again.mp4") is None


def test_without_provenance_a_clip_is_not_signed(service: Service, tmp_path: Path, frames: NDArray[np.uint8]):
    off = replace(service, provenance="off")
    finished(off, tmp_path / "out", frames)
    assert read_credentials(tmp_path / "out" / "video.mp4") is None
    assert not (service.data_folder / "signing").exists()
    words = [provenance_word(s) for s in (off, service, replace(service, signing_certificate="a", signing_key="b"))]
    assert words == ["off", "development", "configured"]


def test_a_clip_that_cannot_be_signed_is_an_error_with_a_code(tmp_path: Path):
    notary = Notary(open_identity("", "", tmp_path / "signing"))
    (tmp_path / "video.mp4").write_bytes(b"no mp4 at all")
    with pytest.raises(DynamiCtrlError, match="could not be signed") as failed:
        notary.sign(tmp_path / "video.mp4", Claim("t", {}, {}))
    assert failed.value.code == "provenance"
    assert (tmp_path / "video.mp4").read_bytes() == b"no mp4 at all"
    assert not list(tmp_path.glob("*.part"))


def test_a_development_identity_is_made_once_for_its_owner_only_and_again_when_it_has_run_out(tmp_path: Path):
    first = open_identity("", "", tmp_path / "signing")
    assert (first.is_development, open_identity("", "", tmp_path / "signing")) == (True, first)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "signing").iterdir()} == {"0o600"}
    # Days are counted from five minutes ago: with 0 of them it is over.
    over = make_identity(DEVELOPMENT, "old", days=0)
    for name, content in zip(("certificate.pem", "key.pem"), over, strict=True):
        (tmp_path / "signing" / name).write_bytes(content)
    renewed = open_identity("", "", tmp_path / "signing")
    assert renewed.chain not in (first.chain, over[0])
    assert [path.name for path in tmp_path.iterdir()] == ["signing"]


def test_ones_own_certificate_signs_and_whoever_trusts_its_authority_is_told_so(
    service: Service, tmp_path: Path, frames: NDArray[np.uint8]
):
    chain, key = make_identity("A Studio", "clips.example.org")
    (tmp_path / "chain.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(key)
    own = replace(service, signing_certificate=str(tmp_path / "chain.pem"), signing_key=str(tmp_path / "key.pem"))
    finished(own, tmp_path / "out", frames)
    clip = tmp_path / "out" / "video.mp4"
    for trusted, is_trusted in ((b"", False), (chain, True), (make_identity("Another", "x")[0], False)):
        found = read_credentials(clip, trusted)
        assert found is not None
        assert (found.is_intact, found.is_trusted, found.signer, found.is_development) == (
            True, is_trusted, "clips.example.org", False
        )  # fmt: skip


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("chain", ""), "go together"),
        (("missing", "key"), "cannot be read"),
        (("chain", "other_key"), "does not belong to the key"),
        (("old_chain", "old_key"), "is valid from"),
        (("authority", "key"), "does not belong"),
    ],
)
def test_unusable_certificates_are_refused_before_anything_is_rendered(
    tmp_path: Path, files: tuple[str, str], message: str
):
    made = {"": make_identity("A", "a"), "other_": make_identity("B", "b"), "old_": make_identity("C", "c", days=0)}
    for prefix, (chain, key) in made.items():
        (tmp_path / f"{prefix}chain").write_bytes(chain)
        (tmp_path / f"{prefix}key").write_bytes(key)
    (tmp_path / "authority").write_bytes(b"-----BEGIN" + made[""][0].split(b"-----BEGIN")[2])
    certificate, key = (str(tmp_path / name) if name else "" for name in files)
    with pytest.raises(ConfigError, match=message) as refused:
        open_identity(certificate, key, tmp_path / "signing")
    assert refused.value.code == "signing_certificate"


def test_verify_says_what_is_signed_and_ends_with_0_or_1(
    service: Service, tmp_path: Path, frames: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
):
    marked = replace(service, invisible_mark=True)
    finished(marked, tmp_path / "out", frames)
    clip, key = tmp_path / "out" / "video.mp4", service.data_folder / "signing-mark.key"
    assert main(["verify", str(clip), "--mark-key", str(key)]) == 0
    told = capsys.readouterr().out
    assert "video.mp4 is intact" in told
    assert "a development certificate that anyone can make" in told
    assert "c2pa.created (trainedAlgorithmicMedia)" in told
    assert f"input input_reference: sha256 {'1' * 64}" in told
    assert "found: job 01234567..." in told

    (tmp_path / "changed.mp4").write_bytes(clip.read_bytes()[:-9] + b"\0" * 9)
    assert main(["verify", str(tmp_path / "changed.mp4")]) == 1
    told = capsys.readouterr()
    assert "NOT intact" in told.out
    assert "no good signature" in told.err

    write_video(tmp_path / "plain.mp4", frames, 12.0)
    assert main(["verify", str(tmp_path / "plain.mp4"), "--json", "--mark-key", str(key)]) == 1
    assert json.loads(capsys.readouterr().out)["mark"] is None
    assert main(["verify", str(tmp_path / "none.mp4")]) == 2
    assert main(["verify", str(key)]) == 2


def test_an_invisible_mark_carries_the_jobs_id_through_the_encoder_and_is_said_in_the_signature(
    service: Service, tmp_path: Path, frames: NDArray[np.uint8]
):
    manifest = json.loads(finished(replace(service, invisible_mark=True), tmp_path / "out", frames))
    assert manifest["frames"]["sha256"] == frames_hash(frames)  # as rendered, without the mark
    found = read_credentials(tmp_path / "out" / "video.mp4")
    assert found is not None
    assert found.rendering["invisible_mark"] == "01234567"
    assert payload_of(VIDEO) == 0x01234567
    key = open_mark_key("", service.data_folder)
    assert not np.array_equal(mark(frames, payload_of(VIDEO), key), frames)
    assert oct((service.data_folder / "signing-mark.key").stat().st_mode & 0o777) == "0o600"


def test_a_manifest_reads_back_and_knows_its_inputs(tmp_path: Path, frames: NDArray[np.uint8]):
    (tmp_path / "me.png").write_bytes(b"me")
    own = {"input_reference": hashlib.sha256(b"me").hexdigest()}
    (tmp_path / "m.json").write_text(json.dumps(to_manifest(replace(rendering(frames), inputs=own))))
    recipe = read_manifest(tmp_path / "m.json")
    assert (recipe.settings, recipe.model_version, recipe.differences()) == (SETTINGS, "abc", [])
    assert recipe.frames_sha256 == frames_hash(frames) != frames_hash(frames[::-1])
    recipe.check_input("input_reference", tmp_path / "me.png")
    with pytest.raises(InputError, match="is not the input_reference"):
        recipe.check_input("input_reference", tmp_path / "m.json")
    with pytest.raises(InputError, match="was made without mask"):
        recipe.check_input("mask", tmp_path / "me.png")
    other = replace(recipe, software={**recipe.software, "torch": "1.0"})
    assert [line.partition(" is ")[0] for line in other.differences()] == ["torch"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1, "settings": {"magic": 1}}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError, match="no manifest of a clip"):
        read_manifest(tmp_path / "m.json")


def test_verifying_loads_neither_torch_nor_ray():
    code = "import sys, serving.results.verification; print({'torch', 'ray', 'diffusers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
