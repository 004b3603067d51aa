from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from deployments.models.attribute_evaluation import (
    AgeCase,
    AttributeReport,
    ClassCase,
    LeftOut,
    Share,
    age_figures,
    class_figures,
    evaluate_attributes,
    fit_interval,
)
from deployments.models.attribute_labels import LabelledPhoto, age_band, age_of, class_of, read_labels
from deployments.models.attribute_packs import AnalysisLocation
from deployments.models.attribute_report import describe_attributes
from deployments.models.packs import Pack, PackLocation
from serve_app.attributes import AgeInterval, Attribute, AttributeModel, estimate_age, estimate_class
from serve_app.errors import ConfigurationError
from serve_app.faces import ChipSpec, Frame
from serve_app.imaging.images import encode_png
from tests import data

INTERVAL = AgeInterval(0.8, below=1.0, above=2.0, floor_years=2.0)


def model(attribute: Attribute, classes: tuple[str, ...] = (), interval: AgeInterval | None = None) -> AttributeModel:
    chip = ChipSpec(Frame.DLIB, 64)
    return AttributeModel(attribute, f"{attribute}_model", chip, classes, 0.8, interval, "", "", None, "", "", "")


AGE = model(Attribute.AGE, interval=INTERVAL)
GENDER = model(Attribute.GENDER, ("female", "male"))


def photo(name: str = "a.jpg", kind: str = "", **labels: str) -> LabelledPhoto:
    return LabelledPhoto(Path(name), name, kind, {Attribute(key): text for key, text in labels.items()})


def age_case(years: float, estimate: float, deviation: float = 3.0, about: LabelledPhoto | None = None) -> AgeCase:
    return AgeCase(about or photo(age=str(years)), years, estimate_age([estimate, deviation], AGE), deviation)


def class_case(label: str, female: float, about: LabelledPhoto | None = None) -> ClassCase:
    return ClassCase(about or photo(gender=label), label, estimate_class([female, 1 - female], GENDER, None))


class TestLabels:
    def test_a_manifest(self, tmp_path: Path) -> None:
        path = tmp_path / "people.csv"
        path.write_text("file,kind,gender,age,note\na.jpg,attr,F, 31 ,x\nb.jpg,,,,\nc.jpg,attr,M,,\n,attr,M,1,\nd.jpg\n")
        first, second, third, short = read_labels(path)
        assert first.labels == {Attribute.AGE: "31", Attribute.GENDER: "F"} and first.kind == "attr"
        assert first.path == tmp_path.parent / "a.jpg" and first.name == "a.jpg"
        assert second.labels == short.labels == {} and second.kind == short.kind == ""
        assert third.labels == {Attribute.GENDER: "M"}
        (tmp_path / "a.jpg").touch()
        assert read_labels(path)[0].path == tmp_path / "a.jpg"

    @pytest.mark.parametrize("text", ["file,kind\na.jpg,x\n", "photo,age\na.jpg,3\n", "", None, "file,age\nä.jpg,3\n"])
    def test_other_files_are_refused(self, tmp_path: Path, text: str | None) -> None:
        path = tmp_path / "people.csv"
        if text is not None:
            path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigurationError, match=r"people\.csv"):
            read_labels(path)

    @pytest.mark.parametrize(
        ("label", "years"),
        [("31", 31.0), ("0.5", 0.5), ("10-19", None), ("adult", None), ("-1", None), ("150", None), ("nan", None), ("", None)],
    )
    def test_ages(self, label: str, years: float | None) -> None:
        assert age_of(label) == years

    @pytest.mark.parametrize(
        ("attribute", "label", "expected"),
        [
            (Attribute.GENDER, "F", "female"),
            (Attribute.GENDER, "Male", "male"),
            (Attribute.EMOTION, "happy", "happiness"),
            (Attribute.EMOTION, "disgusted", "disgust"),
            (Attribute.EMOTION, "neutral", "neutral"),
            (Attribute.EMOTION, "contempt", "contempt"),
            (Attribute.RACE, "middle_eastern", "middle eastern"),
            (Attribute.RACE, "Latino-Hispanic", "latino hispanic"),
            (Attribute.RACE, "other", "other"),
        ],
    )
    def test_classes(self, attribute: Attribute, label: str, expected: str) -> None:
        assert class_of(attribute, label) == expected

    def test_bands(self) -> None:
        assert [age_band(years) for years in (0, 12.9, 13, 34, 64.5, 65, 110)] == [
            "0-12", "0-12", "13-19", "20-34", "50-64", "65 and older", "65 and older",
        ]  # fmt: skip


class TestFigures:
    def test_ages_by_hand(self) -> None:
        # Intervals: 30 - 5 to 30 + 10, and so on.
        figures = age_figures([age_case(30, 30), age_case(40, 30), age_case(24, 30), age_case(60, 49)])
        assert (figures.count, figures.mae_years, figures.median_years) == (4, 6.75, 8.0)
        assert figures.bias_years == pytest.approx((0 - 10 + 6 - 11) / 4)
        assert (figures.within_5, figures.within_10) == (0.25, 0.75)
        assert figures.coverage == Share(2, 4) and figures.width_years == 15

    def test_without_an_interval(self) -> None:
        figures = age_figures([age_case(30, 32, math.nan)])
        assert figures.mae_years == 2 and figures.coverage is None and figures.width_years is None

    def test_classes_by_hand(self) -> None:
        figures = class_figures(
            [class_case("female", 0.9), class_case("female", 0.6), class_case("male", 0.7), class_case("male", 0.95)]
        )
        assert figures.all == Share(2, 4) and figures.answered == Share(1, 2) and figures.abstained == 0.5
        assert class_figures([class_case("female", 0.6)]).answered is None

    def test_the_interval_of_a_share(self) -> None:
        # Newcombe 1998, DOI 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I, method 3.
        for hits, count, low, high in (
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ):
            assert Share(hits, count).interval == pytest.approx((low, high), abs=5e-5)
        assert Share(20, 20).interval[1] == 1.0


class TestFit:
    def test_ranks_by_hand(self) -> None:
        # Residuals -9 to 9 over w = 1: of 19, the tenth part of 20 is the second from either end.
        cases = [age_case(50 + shift, 50, 0.0) for shift in range(-9, 10)]
        assert fit_interval(cases, 0.8, 1.0) == AgeInterval(0.8, 8.0, 8.0, 1.0)

    def test_it_holds_new_faces_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(3)
        covered = []
        for _ in range(200):
            deviations = rng.uniform(1, 6, 60)
            labels = 40 + deviations * rng.normal(1, 2, 60)
            cases = [age_case(years, 40, deviation) for years, deviation in zip(labels, deviations, strict=True)]
            fitted = fit_interval(cases[:40], 0.8, 1.0)
            assert fitted is not None
            new = [(case.years - 40) / (case.deviation_years + 1) for case in cases[40:]]
            covered += [-fitted.below <= score <= fitted.above for score in new]
        assert np.mean(covered) == pytest.approx(0.8, abs=0.03)

    def test_too_few_or_no_deviation(self) -> None:
        assert fit_interval([age_case(50, 50)] * 8, 0.8, 1.0) is None
        assert fit_interval([], 0.8, 1.0) is None
        assert fit_interval([age_case(50, 50, math.nan)] * 30, 0.8, 1.0) is None


def cells_of(lines: list[str]) -> dict[str, list[str]]:
    """The other cells of each row of tables, by its first."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_a_report_is_tables_by_group_and_what_was_left_out() -> None:
    woman, girl = photo("w.jpg", "a", age="40", gender="F", race="other"), photo("g.jpg", "b", age="10", gender="F")
    man = photo("m.jpg", "b", age="10-19", gender="M")
    report = AttributeReport({Attribute.AGE: AGE, Attribute.GENDER: GENDER}, {Attribute.RACE: "no file"}, 9, 4)
    report.ages = [age_case(40, 44, about=woman), age_case(10, 12, about=girl)]
    report.classes[Attribute.GENDER] = [
        class_case("female", 0.9, woman),
        class_case("female", 0.3, girl),
        class_case("male", 0.1, man),
    ]
    report.left_out = [
        LeftOut("m.jpg", Attribute.AGE, "'10-19' is no single age"),
        LeftOut("x.jpg", None, "no face was found"),
    ]
    lines = describe_attributes(report)
    split = lines.index("## gender: gender_model")
    ages, genders = cells_of(lines[:split]), cells_of(lines[split:])
    assert "4 of 9 photos" in lines[0]
    assert ages["all"][:4] == ["2", "3.00", "3.00", "+3.00"] and ages["age 35-49"][:4] == ["1", "4.00", "4.00", "+4.00"]
    assert ages["photos"][6] == "in the 80 % interval" and ages["all"][6] == "1.000 (0.34-1.00)"
    assert genders["all"] == ["3", "0.667 (0.21-0.94)", "0.333", "1.000 (0.34-1.00)"]
    assert genders["kind b"][0] == "2" and genders["race other"][0] == "1" and genders["race unknown"][0] == "2"
    assert genders["age unknown"][0] == "1", "a man of some age in his teens counts for his gender"
    assert genders["female"] == ["2", "0.500 (0.09-0.91)", "1", "1"] and genders["male"][2:] == ["0", "1"]
    assert not any(line.startswith("| gender") for line in lines), "of two women's ages, one group is no comparison"
    assert lines[lines.index("## race: not measured") + 2] == "no file"
    assert lines[-3:] == ["", "- m.jpg, age: '10-19' is no single age", "- x.jpg: no face was found"]


class TestRun:
    @pytest.fixture
    def location(self, opencv_pack: Pack, model_cache: Path, tmp_path: Path) -> AnalysisLocation:
        return AnalysisLocation(PackLocation("opencv", tmp_path, model_cache), tmp_path)

    def test_on_photos(self, location: AnalysisLocation, tmp_path: Path) -> None:
        (tmp_path / "man.png").write_bytes(data.package_image("Tom_Hanks_54745.png"))
        (tmp_path / "nobody.png").write_bytes(encode_png(np.zeros((64, 64, 3), np.uint8)))
        (tmp_path / "text.png").write_bytes(b"text")
        csv = tmp_path / "faces.csv"
        csv.write_text(
            "file,age,gender,race\nman.png,50,M,white\nnobody.png,3,,\ntext.png,,F,\nman.png,40-49,X,\nabsent.png,,,white\n"
        )
        done: list[tuple[int, int]] = []
        photos = read_labels(csv)
        report = evaluate_attributes(location, photos, list(Attribute), None, lambda *steps: done.append(steps))
        assert (report.listed, report.photos, done[-1]) == (5, 4, (4, 4)) and set(report.missing) == {Attribute.RACE}
        assert [case.photo.name for case in report.ages] == ["man.png"] and 25 < report.ages[0].estimate.years < 75
        assert report.ages[0].interval is not None and report.ages[0].deviation_years > 0
        assert [case.correct for case in report.classes[Attribute.GENDER]] == [True]
        assert [(left.name, left.attribute) for left in report.left_out] == [
            ("nobody.png", None), ("text.png", None), ("man.png", Attribute.AGE), ("man.png", Attribute.GENDER),
        ]  # fmt: skip
        only = evaluate_attributes(location, photos, [Attribute.GENDER], None, lambda *steps: None)
        assert set(only.models) == {Attribute.GENDER} and only.photos == 3 and not only.missing and not only.ages

    def test_nothing_to_measure(self, location: AnalysisLocation) -> None:
        for labels, why in (({"race": "white"}, "deepface_race"), ({"emotion": "sad"}, "no photo has a label")):
            with pytest.raises(ConfigurationError, match=f"nothing to measure.*{why}"):
                evaluate_attributes(location, [photo(**labels)], [Attribute.RACE], None, lambda *steps: None)

    def test_a_photo_that_is_not_there(self, location: AnalysisLocation, tmp_path: Path) -> None:
        absent = LabelledPhoto(tmp_path / "absent.png", "absent.png", "", {Attribute.AGE: "3"})
        with pytest.raises(ConfigurationError, match=r"absent\.png cannot be read"):
            evaluate_attributes(location, [absent], list(Attribute), None, lambda *steps: None)
