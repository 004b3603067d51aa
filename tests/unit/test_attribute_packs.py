"""Which model answers an attribute, and what is said where none does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.models import attribute_packs
from deployments.models.attribute_packs import OFF, AnalysisLocation, attribute_model_specs, resolve_analysis
from deployments.models.deepface_models import DeepFaceEngine
from deployments.models.loading import load_attribute_models
from deployments.models.packs import Pack, PackLocation, pack_specs, sha256_of
from serve_app.attributes import Attribute
from serve_app.errors import ConfigurationError

EMOTIONS = {"anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"}
GENDERAGE_FIRST = {Attribute.AGE: ("genderage", "dlib_age"), Attribute.GENDER: ("genderage", "dlib_gender")}


@pytest.fixture
def location(opencv_pack: Pack, model_cache: Path, tmp_path: Path) -> AnalysisLocation:
    """The default pack; no weights of deepface's, nor any below MODEL_ROOT."""
    return AnalysisLocation(PackLocation("opencv", tmp_path / "root", model_cache), tmp_path / "home")


def with_candidates(
    monkeypatch: pytest.MonkeyPatch, pack: Pack, folder: Path, candidates: Mapping[Attribute, tuple[str, ...]]
) -> None:
    """Lets the location's pack be one that lies in `folder` and tries `candidates`."""
    other = replace(pack, folder=folder, spec=pack.spec.model_copy(update={"attributes": candidates}))
    monkeypatch.setattr(attribute_packs, "resolve", lambda location: other)


def test_the_catalogue_is_complete() -> None:
    specs = attribute_model_specs()
    for name, spec in specs.items():
        assert spec.title and spec.licence and spec.preprocessing and spec.homepage.startswith("https://"), name
        if Attribute.GENDER in spec.attributes:
            assert spec.classes == ("female", "male"), name
        if Attribute.EMOTION in spec.attributes:
            assert set(spec.classes) == EMOTIONS, name
        assert bool(spec.classes) == (spec.attributes != (Attribute.AGE,)), name
        assert spec.input is not None or spec.family in ("genderage", "deepface"), name
    for pack in pack_specs().values():
        for attribute in Attribute:
            assert pack.attributes[attribute], "every pack has candidates for every attribute"
            assert all(attribute in specs[name].attributes for name in pack.attributes[attribute])


def test_the_default_pack_knows_age_and_gender_by_itself(location: AnalysisLocation) -> None:
    found = resolve_analysis(location)
    described = found.described()
    assert {name: model.name for name, model in described.items()} == {"age": "dlib_age", "gender": "dlib_gender"}
    assert described[Attribute.AGE].classes == () and described[Attribute.AGE].interval is not None
    assert described[Attribute.GENDER].interval is None and 0.5 < described[Attribute.GENDER].abstain_below < 1
    assert set(found.missing) == {Attribute.EMOTION, Attribute.RACE}
    assert all(model.sha256 == model.spec.sha256 and model.path.is_file() for model in found.models)


def test_what_is_missing_is_told_to_all_and_where_it_belongs_to_the_operator(
    location: AnalysisLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeepFaceEngine, "installed", True)
    lost = resolve_analysis(location).missing[Attribute.RACE]
    assert lost.reason == "deepface_race needs race_model_single_batch.onnx, which is not installed."
    assert str(location.deepface_home) in lost.remedy and "kinlens models pull deepface_race" in lost.remedy
    for missing in resolve_analysis(location).missing.values():
        assert "/" not in missing.reason


@pytest.mark.parametrize(("engine", "extra"), [(DeepFaceEngine.ONNX, "deepface"), (DeepFaceEngine.TENSORFLOW, "tensorflow")])
def test_an_extra_that_is_not_installed_is_named(
    location: AnalysisLocation, monkeypatch: pytest.MonkeyPatch, engine: DeepFaceEngine, extra: str
) -> None:
    monkeypatch.setattr(DeepFaceEngine, "installed", False)
    lost = resolve_analysis(replace(location, deepface_engine=engine)).missing[Attribute.RACE]
    assert f"needs the extra {extra!r}" in lost.reason and f"uv sync --extra {extra}" in lost.remedy


@pytest.mark.parametrize("engine", DeepFaceEngine)
def test_an_override_takes_the_place_of_the_packs_models(
    location: AnalysisLocation, monkeypatch: pytest.MonkeyPatch, engine: DeepFaceEngine
) -> None:
    monkeypatch.setattr(DeepFaceEngine, "installed", True)
    weights = location.deepface_home / ".deepface" / "weights" / f"age_model_weights{engine.suffix}"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    found = resolve_analysis(replace(location, deepface_engine=engine, overrides={Attribute.AGE: "deepface_age"}))
    assert {name: model.name for name, model in found.described().items()} == {"age": "deepface_age", "gender": "dlib_gender"}
    assert found.models[0].path == weights and found.described()[Attribute.AGE].interval is None


def test_an_override_has_no_substitute(location: AnalysisLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeepFaceEngine, "installed", True)
    found = resolve_analysis(replace(location, overrides={Attribute.AGE: "deepface_age"}))
    assert "age_model_weights.onnx" in found.missing[Attribute.AGE].reason


def test_off(location: AnalysisLocation) -> None:
    found = resolve_analysis(replace(location, overrides={Attribute.GENDER: OFF}))
    assert set(found.described()) == {Attribute.AGE}
    assert found.missing[Attribute.GENDER].reason == "The operator switched it off."
    assert found.missing[Attribute.GENDER].remedy == ""


@pytest.mark.parametrize("name", ["nothing_here", "dlib_gender", ""])
def test_a_model_that_cannot_answer_is_refused(location: AnalysisLocation, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is no model for age; there are dlib_age, genderage, deepface_age"):
        resolve_analysis(replace(location, overrides={Attribute.AGE: name}))


def test_an_altered_file_is_not_used_and_both_hashes_are_named(
    location: AnalysisLocation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "age-v1.onnx").write_bytes(b"altered")
    monkeypatch.setattr(attribute_packs, "wheel_folder", lambda source: tmp_path)
    lost = resolve_analysis(location).missing[Attribute.AGE]
    assert "dlib_age" in lost.reason and str(tmp_path) not in lost.reason
    expected = attribute_model_specs()["dlib_age"].sha256
    for part in (str(tmp_path), expected, sha256_of(tmp_path / "age-v1.onnx")):
        assert part is not None and part in lost.remedy
    with pytest.raises(ConfigurationError, match="dlib_age"):
        load_attribute_models(location, {"dlib_age": (Attribute.AGE,)}, 1)


class TestGenderage:
    """InsightFace packs answer with their own genderage.onnx where they have one."""

    def test_without_the_file_dlibs_models_answer(
        self, location: AnalysisLocation, opencv_pack: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with_candidates(monkeypatch, opencv_pack, tmp_path, GENDERAGE_FIRST)
        found = resolve_analysis(location)
        assert {name: model.name for name, model in found.described().items()} == {"age": "dlib_age", "gender": "dlib_gender"}
        assert not {Attribute.AGE, Attribute.GENDER} & set(found.missing)

    def test_with_it_one_model_answers_both(
        self, location: AnalysisLocation, opencv_pack: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        specs = attribute_model_specs()
        specs["genderage"] = specs["genderage"].model_copy(update={"sha256": None})
        monkeypatch.setattr(attribute_packs, "attribute_model_specs", lambda: specs)
        with_candidates(monkeypatch, opencv_pack, tmp_path, GENDERAGE_FIRST)
        (tmp_path / "genderage.onnx").write_bytes(b"weights")
        (model,) = resolve_analysis(location).models
        assert model.attributes == (Attribute.AGE, Attribute.GENDER) and model.path == tmp_path / "genderage.onnx"
        assert model.describe(Attribute.AGE).classes == () and model.describe(Attribute.GENDER).classes == ("female", "male")

    def test_where_nothing_is_there_every_candidate_is_named(
        self, location: AnalysisLocation, opencv_pack: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with_candidates(monkeypatch, opencv_pack, tmp_path, GENDERAGE_FIRST)
        monkeypatch.setattr(attribute_packs, "wheel_folder", lambda source: tmp_path)
        lost = resolve_analysis(location).missing[Attribute.AGE]
        assert "genderage.onnx" in lost.reason and "age-v1.onnx" in lost.reason and str(tmp_path) in lost.remedy

    def test_another_file_of_that_name_is_passed_over(
        self, location: AnalysisLocation, opencv_pack: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with_candidates(monkeypatch, opencv_pack, tmp_path, GENDERAGE_FIRST)
        (tmp_path / "genderage.onnx").write_bytes(b"other")
        assert resolve_analysis(location).described()[Attribute.AGE].name == "dlib_age"


def test_a_node_without_the_models_does_not_start(location: AnalysisLocation) -> None:
    # Its file, or first of all the extra.
    why = r"This node lacks deepface_race\..*(race_model_single_batch|the extra 'deepface')"
    with pytest.raises(ConfigurationError, match=why):
        load_attribute_models(location, {"dlib_age": (Attribute.AGE,), "deepface_race": (Attribute.RACE,)}, 1)


def test_only_what_is_named_is_loaded(location: AnalysisLocation) -> None:
    (model,) = load_attribute_models(location, {"dlib_gender": (Attribute.GENDER,)}, 1)
    assert model.attributes == (Attribute.GENDER,)
