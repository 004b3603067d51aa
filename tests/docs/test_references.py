"""What documents refer to is there: headings, files, commands named within a sentence, an answer to every alert."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.docs.elsewhere import kinlens_parses
from tests.unit.test_dashboards import slugs

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\((?!\w+:)([^)\s]*)\)")
_COMMAND = re.compile(r"`(kinlens [a-z][^`]*)`")
_VALUES = {r"\bN\b": "1", r"\.\.\.": "x"}
"""Words that stand for a value of a type."""


def _prose(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    wrong = []
    for link in _LINK.findall(_prose(path)):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        found = target.exists() and (not anchor or target.suffix != ".md" or anchor in slugs(target.read_text("utf-8")))
        if not found:
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_named_in_a_sentence_are_understood(path: Path) -> None:
    for command in _COMMAND.findall(_prose(path)):
        words = " ".join(command.split())
        for written, meant in _VALUES.items():
            words = re.sub(written, meant, words)
        kinlens_parses(words, whole=False)


def test_the_table_at_the_top_leads_to_every_alert_and_task() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = text[: text.index("\n## ")]
    linked = set(re.findall(r"\]\(#([\w-]+)\)", table))
    assert linked >= {
        "install", "upgrade", "going-back", "backup-and-restore", "a-rehearsal", "api-keys", "changing-the-api-key", "a-cluster",
        "changing-the-model", "the-dashboard", "alerts", "sizing", "gpu",
    }  # fmt: skip
    assert linked <= set(slugs(text))
    rules = [
        rule["alert"]
        for group in yaml.safe_load((ROOT / "docs/grafana/alerts.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]
    alerts = text[text.index("\n## Alerts\n") :]
    for name in rules:
        section = re.search(rf"^### {name}\n\n(.+?)(?=^##)", alerts, flags=re.MULTILINE | re.DOTALL)
        assert section and len(section[1].split()) >= 20, f"{name}: the guide does not say what to do"
