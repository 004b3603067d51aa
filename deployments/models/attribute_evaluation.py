"""How often the attribute models err, on photos whose faces somebody has described."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deployments.models.attribute_labels import LabelledPhoto, age_of, class_of
from deployments.models.attribute_packs import AnalysisLocation, resolve_analysis
from deployments.models.engine import AnalysisEngine, AnalysisRequest, DetectionEngine, DetectionRequest
from deployments.models.evaluation import PHOTO_LIMITS, read_photo
from deployments.models.loading import load_attribute_models, load_detector
from deployments.models.packs import resolve
from deployments.models.session import Device
from serve_app.attributes import (
    AgeEstimate,
    AgeInterval,
    Attribute,
    AttributeModel,
    ClassEstimate,
    estimate_age,
    estimate_class,
)
from serve_app.errors import ConfigurationError, ImageError
from serve_app.faces import Chips, DetectionOptions

_THREADS = 2
_Z_95 = 1.959964
"""Of the normal distribution, two-sided."""


@dataclass(frozen=True, slots=True)
class AgeCase:
    """`years`: the label. `deviation_years`: NaN where the model has none."""

    photo: LabelledPhoto
    years: float
    estimate: AgeEstimate
    deviation_years: float

    @property
    def error_years(self) -> float:
        """Positive where the estimate is too old."""
        return self.estimate.years - self.years

    @property
    def interval(self) -> tuple[float, float] | None:
        """Youngest and oldest."""
        low, high = self.estimate.low, self.estimate.high
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True, slots=True)
class ClassCase:
    """`label`: one of the model's classes."""

    photo: LabelledPhoto
    label: str
    estimate: ClassEstimate

    @property
    def correct(self) -> bool:
        """Whether the top class is the label, abstained or not."""
        return self.estimate.top == self.label


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A label that could not be compared with an answer. `attribute`: None where that is so for all of the photo."""

    name: str
    attribute: Attribute | None
    reason: str


@dataclass(slots=True)
class AttributeReport:
    """`models`: what was measured. `missing`: attributes that have labels but no model, and why. `listed`: photos of the CSV;
    `photos`: those with a label for one of `models`."""

    models: Mapping[Attribute, AttributeModel]
    missing: Mapping[Attribute, str]
    listed: int
    photos: int
    ages: list[AgeCase] = field(default_factory=list)
    classes: dict[Attribute, list[ClassCase]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Share:
    """`hits` of `count`, count > 0."""

    hits: int
    count: int

    @property
    def value(self) -> float:
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % score interval (Wilson 1927, DOI 10.1080/01621459.1927.10502953)."""
        n, p, z2 = self.count, self.value, _Z_95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True)
class AgeFigures:
    """Years, and shares of `count` faces. `bias`: positive where the estimates are too old. `coverage`, `width_years`: of the
    interval that is answered; None without one."""

    count: int
    mae_years: float
    median_years: float
    bias_years: float
    within_5: float
    within_10: float
    coverage: Share | None
    width_years: float | None


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """`all`: the top class of every face. `answered`: of those that did not abstain; None where all did."""

    all: Share
    answered: Share | None

    @property
    def abstained(self) -> float:
        """Share of the faces."""
        return 1 - (self.answered.count if self.answered else 0) / self.all.count


def evaluate_attributes(
    location: AnalysisLocation,
    listed: Sequence[LabelledPhoto],
    asked: Collection[Attribute],
    threshold: float | None,
    progress: Callable[[int, int], None],
) -> AttributeReport:
    """What the models of `location` say of the largest face of each photo, beside its labels. `asked`: no other attributes.
    `threshold`: lowest detection_score; None takes the pack's. `progress(done, total)` after each photo.

    Raises ConfigurationError when there is nothing to compare, or a photo is not there.
    """
    resolved = resolve_analysis(location)
    labelled = [name for name in Attribute if name in asked and any(name in photo.labels for photo in listed)]
    models = {name: model for name, model in resolved.described().items() if name in labelled}
    missing = {name: resolved.missing[name] for name in labelled if name not in models}
    reasons = {name: f"{lost.reason} {lost.remedy}".strip() for name, lost in missing.items()}
    if not models:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "no photo has a label that is asked for"
        raise ConfigurationError(f"There is nothing to measure: {why.rstrip('.')}.")
    photos = [photo for photo in listed if photo.labels.keys() & models.keys()]
    classes: dict[Attribute, list[ClassCase]] = {name: [] for name in models if name is not Attribute.AGE}
    report = AttributeReport(models, reasons, len(listed), len(photos), classes=classes)
    pack = resolve(location.pack)
    detector = DetectionEngine(
        load_detector(pack, Device.CPU, _THREADS),
        PHOTO_LIMITS,
        pack.spec.detector.threshold if threshold is None else threshold,
    )
    analyzer = AnalysisEngine(load_attribute_models(location, resolved.assignment, _THREADS))
    options = DetectionOptions(crops=0, chips=tuple(dict.fromkeys(model.chip for model in models.values())), chip_faces=1)
    for done, photo in enumerate(photos, 1):
        found = detector.run([DetectionRequest(read_photo(photo.path), options)])[0]
        if isinstance(found, ImageError):
            report.left_out.append(LeftOut(photo.name, None, found.detail))
        elif not len(found):
            report.left_out.append(LeftOut(photo.name, None, "no face was found"))
        else:
            _compare(report, photo, found.chips, analyzer)
        progress(done, len(photos))
    return report


def _compare(report: AttributeReport, photo: LabelledPhoto, chips: Chips, analyzer: AnalysisEngine) -> None:
    """Adds the first face of `chips` to `report`."""
    attributes = tuple(name for name in report.models if name in photo.labels)
    asked = tuple((name, report.models[name].name) for name in attributes)
    outputs = analyzer.run([AnalysisRequest(chips, asked)])[0]
    for name in attributes:
        model, label = report.models[name], photo.labels[name]
        row = outputs[name][0].tolist()
        if name is Attribute.AGE:
            years = age_of(label)
            if years is None:
                report.left_out.append(LeftOut(photo.name, name, f"{label!r} is no single age"))
            else:
                report.ages.append(AgeCase(photo, years, estimate_age(row, model), row[1]))
        elif (wanted := class_of(name, label)) in model.classes:
            report.classes[name].append(ClassCase(photo, wanted, estimate_class(row, model, None)))
        else:
            report.left_out.append(LeftOut(photo.name, name, f"{label!r} is no class of {model.name}"))


def age_figures(cases: Sequence[AgeCase]) -> AgeFigures:
    """Of at least one face."""
    errors = np.array([case.error_years for case in cases])
    intervals = [(case.years, *case.interval) for case in cases if case.interval is not None]
    return AgeFigures(
        count=len(cases),
        mae_years=float(np.abs(errors).mean()),
        median_years=float(np.median(np.abs(errors))),
        bias_years=float(errors.mean()),
        within_5=float((np.abs(errors) <= 5).mean()),
        within_10=float((np.abs(errors) <= 10).mean()),
        coverage=Share(sum(low <= years <= high for years, low, high in intervals), len(intervals)) if intervals else None,
        width_years=sum(high - low for _, low, high in intervals) / len(intervals) if intervals else None,
    )


def class_figures(cases: Sequence[ClassCase]) -> ClassFigures:
    """Of at least one face."""
    answered = [case.correct for case in cases if not case.estimate.abstained]
    return ClassFigures(
        Share(sum(case.correct for case in cases), len(cases)), Share(sum(answered), len(answered)) if answered else None
    )


def fit_interval(cases: Sequence[AgeCase], level: float, floor_years: float) -> AgeInterval | None:
    """The interval that holds the labels of `cases` in `level` of such faces: locally weighted
    conformal prediction (Lei et al. 2018, DOI 10.1080/01621459.2017.1307116) with signed residuals over w, half of the rest
    in each tail.

    None where there are too few faces, or the model has no deviation.
    """
    scores = sorted((case.years - case.estimate.years) / (case.deviation_years + floor_years) for case in cases)
    # Rounded, because 0.1 * 10 of floats may fall short of a whole rank.
    rank = math.floor(round((1 - level) / 2 * (len(scores) + 1), 9))
    if rank < 1 or math.isnan(sum(scores)):
        return None
    return AgeInterval(level, max(0.0, -scores[rank - 1]), max(0.0, scores[-rank]), floor_years)
