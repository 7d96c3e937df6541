"""What lists say about rights reaches each source in one spelling, and gates it before a byte is fetched."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.clip import Clip
from pipelines.licences import agreed, consents, covers, spdx
from pipelines.stage import run_local
from pipelines.stages.find_videos import FindVideos
from pipelines.stages.require_licence import RequireLicence


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("CC BY 4.0", "CC-BY-4.0"),
        ("cc-by-4.0", "CC-BY-4.0"),
        ("cc_by_sa_4.0", "CC-BY-SA-4.0"),
        ("Creative Commons Attribution-NonCommercial 4.0 International", "CC-BY-NC-4.0"),
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/deed.en", "CC-BY-NC-SA-4.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("CC0", "CC0-1.0"),
        ("Creative Commons Zero", "CC0-1.0"),
        ("Public Domain", "CC-PDM-1.0"),
        ("MIT License", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("BSD-3-Clause", "BSD-3-Clause"),
        ("CC-BY", "CC-BY"),
        ("All Rights Reserved.", "all rights reserved."),
        ("", ""),
    ],
)
def test_a_licence_has_one_name_however_it_is_written(said: str, name: str):
    assert spdx(said) == name


@pytest.mark.parametrize(
    ("allowed", "licence", "is_covered"),
    [
        ("CC-BY-4.0", "CC BY 4.0", True),
        ("cc by", "CC-BY-3.0", True),
        ("CC-BY", "CC BY-NC 4.0", False),
        ("CC-BY-4.0", "CC BY 3.0", False),
        ("CC-BY-4.0", "CC BY", False),
        ("CC0", "https://creativecommons.org/publicdomain/zero/1.0/", True),
        ("house agreement 7", "House Agreement 7", True),
        ("CC-BY", "", False),
    ],
)
def test_a_licence_is_covered_by_what_names_it(allowed: str, licence: str, is_covered: bool):
    assert covers((allowed,), licence) == is_covered


@pytest.mark.parametrize(
    ("said", "given"), [("Yes", True), ("signed ", True), ("no", False), ("", False), ("0", False)]
)
def test_consent_is_given_where_it_is_said_to_be(said: str, given: bool):
    assert consents(said) == given


CC_BY = Clip(source="s3://a/v.mp4", fingerprint="f" * 32, licence="CC BY 4.0", consent="yes")


@pytest.mark.parametrize(
    ("gate", "source", "reason"),
    [
        (RequireLicence(require=True), CC_BY, ""),
        (RequireLicence(require=True), replace(CC_BY, licence=" "), "no_licence"),
        (RequireLicence(allowed=("CC-BY", "CC0")), CC_BY, ""),
        (RequireLicence(allowed=("CC0",)), CC_BY, "licence_not_allowed"),
        (RequireLicence(allowed=("CC0",)), replace(CC_BY, licence=""), "no_licence"),
        (RequireLicence(require_consent=True), CC_BY, ""),
        (RequireLicence(require_consent=True), replace(CC_BY, consent="no"), "no_consent"),
    ],
)
def test_the_gate_lets_pass_what_is_asked_for(gate: RequireLicence, source: Clip, reason: str):
    (result,) = run_local([gate], [source])
    assert result.rejected == reason
    # Its content is not known: no byte of it was read. Yet it has a name of its own on record.
    assert bool(result.key) == bool(reason)


def listed(folder: Path, *rows: dict[str, str]) -> list[Clip]:
    path = folder / "list.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return list(FindVideos().process(Clip(source=str(path))))


def test_all_rights_columns_travel_in_any_case_of_letters(tmp_path: Path):
    row = {"URL": "https://x.org/a.mp4", "url": "https://x.org/a.mp4", "License": "CC0", "Consent": "yes"}
    (clip,) = listed(tmp_path, {**row, "Basis": "contract", "attribution": " Jo ", "origin": "set 1", "note": "n"})
    assert (clip.licence, clip.consent) == ("CC0", "yes")
    assert clip.rights == {"basis": "contract", "attribution": "Jo", "origin": "set 1"}


def test_two_rows_of_one_source_are_one_with_what_either_states(tmp_path: Path):
    (clip,) = listed(
        tmp_path,
        {"url": "https://x.org/a.mp4", "licence": "CC BY 4.0", "origin": "b"},
        {"url": "https://x.org/a.mp4", "licence": "cc-by-4.0", "consent": "yes", "origin": "a"},
    )
    assert (spdx(clip.licence), clip.consent, clip.rights) == ("CC-BY-4.0", "yes", {"origin": "a; b"})
    assert clip.rejected == ""


@pytest.mark.parametrize("column", ["licence", "consent", "basis"])
def test_two_rows_that_contradict_each_other_have_the_source_refused(column: str, tmp_path: Path):
    rows = [{"url": "https://x.org/a.mp4", column: value} for value in ("CC0", "CC BY 4.0")]
    both = [listed(tmp_path, *rows), listed(tmp_path, *rows[::-1])]
    for found in both:
        (clip,) = run_local([RequireLicence()], found)
        assert clip.rejected == "rights_conflict"
        assert "'CC BY 4.0' and 'CC0' for one source; keep the row that holds" in clip.message
    assert both[0] == both[1]
    # Named once more in another list, it stays refused; once the lists agree it is looked at anew.
    (again,) = run_local([RequireLicence()], agreed([*both[0], *listed(tmp_path, rows[0])]))
    assert again.rejected == "rights_conflict"
    assert listed(tmp_path, rows[0])[0].fingerprint != both[0][0].fingerprint


def test_thirteen_thousand_rows_on_a_web_that_is_not_there_are_found_each_once(tmp_path: Path):
    found = listed(tmp_path, *({"url": f"https://nowhere.invalid/{n}.mp4", "licence": "CC0"} for n in range(13_000)))
    assert len({clip.fingerprint for clip in found}) == 13_000
    assert {clip.licence for clip in found} == {"CC0"}
