"""What the attribute models were measured at, for a person: text that is Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from deployments.models.attribute_evaluation import (
    AgeCase,
    AttributeReport,
    ClassCase,
    Share,
    age_figures,
    class_figures,
    fit_interval,
)
from deployments.models.attribute_labels import AGE_BANDS, LabelledPhoto, age_band, age_of, class_of
from serve_app.attributes import Attribute, AttributeModel


class _Case(Protocol):
    @property
    def photo(self) -> LabelledPhoto: ...


CaseT = TypeVar("CaseT", bound=_Case)


def describe_attributes(report: AttributeReport) -> list[str]:
    """Lines of Markdown: for each attribute the figures of all photos and of each group; then what was left out."""
    lines = [f"{report.photos} of {report.listed} photos have a label for what is measured; the largest face of each."]
    for name, model in report.models.items():
        cases = report.ages if name is Attribute.AGE else report.classes[name]
        lines += ["", f"## {name}: {model.name}", ""]
        if not cases:
            lines.append("No label could be compared.")
        elif name is Attribute.AGE:
            lines += _age_lines(report.ages, model)
        else:
            lines += _class_lines(report.classes[name], name, model)
    for name, why in report.missing.items():
        lines += ["", f"## {name}: not measured", "", why]
    lines += ["", f"Left out: {len(report.left_out)}.", *([""] if report.left_out else [])]
    lines += [
        f"- {left.name}{f', {left.attribute}' if left.attribute else ''}: {left.reason.rstrip('.')}"
        for left in report.left_out
    ]
    return lines


def _age_lines(cases: Sequence[AgeCase], model: AttributeModel) -> list[str]:
    rows = []
    for title, group in _grouped(cases, ("kind", "age", "gender", "race")):
        figures = age_figures(group)
        rows.append(
            [
                title,
                str(figures.count),
                f"{figures.mae_years:.2f}",
                f"{figures.median_years:.2f}",
                f"{figures.bias_years:+.2f}",
                f"{figures.within_5:.3f}",
                f"{figures.within_10:.3f}",
                _share(figures.coverage),
                "" if figures.width_years is None else f"{figures.width_years:.1f}",
            ]
        )
    level = f"{model.interval.level * 100:g} % " if model.interval else ""
    head = ["photos", "faces", "MAE", "median error", "bias", "within 5", "within 10", f"in the {level}interval", "its width"]
    lines = [*table(head, rows), "", "In years. Bias: above 0 the estimate is too old. Shares with their 95 % interval."]
    if model.interval is not None:
        fitted = fit_interval(cases, model.interval.level, model.interval.floor_years)
        if fitted is not None:
            lines.append(
                f"An interval of level {fitted.level} made of these faces: below = {fitted.below:.2f}, "
                f"above = {fitted.above:.2f}, floor_years = {fitted.floor_years:g}."
            )
    return lines


def _class_lines(cases: Sequence[ClassCase], attribute: Attribute, model: AttributeModel) -> list[str]:
    rows = []
    for title, group in _grouped(cases, tuple(name for name in ("kind", "age", "gender", "race") if name != attribute)):
        figures = class_figures(group)
        row = [title, str(figures.all.count), _share(figures.all), f"{figures.abstained:.3f}", _share(figures.answered)]
        rows.append(row)
    lines = table(["photos", "faces", "accuracy", "abstained", "accuracy of the others"], rows)
    confusion = []
    for label in model.classes:
        of_label = [case for case in cases if case.label == label]
        if of_label:
            answers = [str(sum(case.estimate.top == top for case in of_label)) for top in model.classes]
            confusion.append([label, str(len(of_label)), _share(class_figures(of_label).all), *answers])
    return [
        *lines,
        "",
        f"Abstained: the top class has a probability below {model.abstain_below:g}. Accuracy and recall count the top class "
        "of every face, with the 95 % interval.",
        "",
        *table(["label", "faces", "recall", *(f"said {name}" for name in model.classes)], confusion),
    ]


def _grouped(cases: Sequence[CaseT], by: Sequence[str]) -> list[tuple[str, list[CaseT]]]:
    """All, and then each group of each of `by` that tells photos apart; last of each, those without such a label."""
    found = [("all", list(cases))]
    for name in by:
        groups: dict[str, list[CaseT]] = {}
        for case in cases:
            groups.setdefault(_GROUPS[name](case.photo), []).append(case)
        if len(groups) > 1:
            bands = [band for _, band in AGE_BANDS]
            ordered = sorted(groups, key=lambda group: (group == "", bands.index(group) if group in bands else 0, group))
            found += [(f"{name} {group or 'unknown'}", groups[group]) for group in ordered]
    return found


def _group_of_age(photo: LabelledPhoto) -> str:
    years = age_of(photo.labels.get(Attribute.AGE, ""))
    return "" if years is None else age_band(years)


_GROUPS: dict[str, Callable[[LabelledPhoto], str]] = {
    "kind": lambda photo: photo.kind,
    "age": _group_of_age,
    "gender": lambda photo: class_of(Attribute.GENDER, photo.labels.get(Attribute.GENDER, "")),
    "race": lambda photo: class_of(Attribute.RACE, photo.labels.get(Attribute.RACE, "")),
}
"""The group of a photo; empty where it has no such label."""


def _share(share: Share | None) -> str:
    if share is None:
        return ""
    low, high = share.interval
    return f"{share.value:.3f} ({low:.2f}-{high:.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells padded to columns, so that it is a table without a renderer too."""
    widths = [max(len(row[index]) for row in [head, *rows]) for index in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |"

    return [line(head), f"|{'|'.join('-' * (width + 2) for width in widths)}|", *map(line, rows)]
