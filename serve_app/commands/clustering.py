"""`kinlens evaluate clustering`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve_app.commands.common import console, problems, read_settings


def evaluate_clustering(
    photos: Annotated[Path, typer.Argument(help="CSV with file and identity, or a folder with a folder for each person.")],
    splits: Annotated[
        int, typer.Option(min=0, help="Besides, on so many random halves of the persons, with the parameters of the other.")
    ] = 0,
) -> None:
    """Groups of MODEL_PACK's faces against the persons they show, beside DBSCAN, HDBSCAN and Chinese whispers at their best
    parameters. The output is Markdown."""
    from rich.progress import Progress

    from deployments.models.cluster_evaluation import compare, compare_halves, embed_named, limits_of, read_named
    from deployments.models.cluster_peers import peers
    from deployments.models.cluster_report import describe_clustering, describe_halves
    from deployments.models.packs import resolve
    from serve_app.app import AppArgs, pack_location

    others = peers()
    named = read_named(photos)
    pack = resolve(pack_location(read_settings(), AppArgs()))
    limits = limits_of(pack)
    with Progress(console=problems) as progress:
        task = progress.add_task("embedding")
        faces = embed_named(pack, named, lambda done, total: progress.update(task, completed=done, total=total))
        task = progress.add_task("grouping", total=None)
        results = compare(faces, limits, others, lambda name: progress.update(task, description=name))
        halves = list(compare_halves(faces, limits, others, splits, lambda name: progress.update(task, description=name)))
    for line in describe_clustering(faces, results):
        console.print(line, markup=False)
    if halves:
        console.print()
        for line in describe_halves(halves):
            console.print(line, markup=False)
