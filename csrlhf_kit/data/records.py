"""The three kinds of record that the kit works with, checked when they are built.

- `Prompt`: a request, for rollouts or evaluation;
- `LabelledResponse`: one response with an absolute safe/unsafe label (what CS-RLHF's cost model learns from);
- `PreferencePair`: two responses with two separate judgements, helpful and harmless (Safe RLHF; the field
  names are PKU-SafeRLHF's columns).

Every record is valid: a field of the wrong type, an empty prompt or response, or an id other than 0 or 1 raises
`UserError` with the field, what was found and what was expected. The reader in `csrlhf_kit.data.sources` adds the
file and the line.
"""

from __future__ import annotations

import math
import sys
import unicodedata
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, NoReturn

from csrlhf_kit.errors import UserError


class UnusableRow(UserError):
    """A row that lacks an answer or a label. A large table may hold a few."""


def abbreviated(value: Any, limit: int = 60) -> str:
    """`value` as an error message shows it: its repr, cut to `limit` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of 5,000 digits, or lists in lists in lists
        text = f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def quoted(text: str, limit: int = 60) -> str:
    """A name from the data as an error message shows it: in backticks, on one line, cut to `limit` characters."""
    return f"`{abbreviated(text, limit)[1:-1]}`"


def is_missing(value: Any) -> bool:
    """True for null, for blank text (such as an empty CSV cell) and for NaN (which pandas writes for null)."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def refuse(name: str, value: Any, expected: str) -> NoReturn:
    """Raise UserError about a field's value; UnusableRow if the value is missing."""
    kind = UnusableRow if is_missing(value) else UserError
    raise kind(f"field `{name}`: found {abbreviated(value)}, expected {expected}")


def _check_text(record: Any, name: str, *, filled: bool = False) -> None:
    value = getattr(record, name)
    expected = "text that is not empty" if filled else "text"
    if not isinstance(value, str) or (filled and not value.strip()):
        refuse(name, value, expected)
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair ("\ud800"), which no file and no tokenizer can hold.
        raise UnusableRow(
            f"field `{name}`: found {abbreviated(value)}, expected valid Unicode, without half a surrogate pair"
        ) from None


def _check_bool(record: Any, name: str, *, optional: bool = False) -> None:
    value = getattr(record, name)
    if not isinstance(value, bool) and not (optional and value is None):
        refuse(name, value, "true, false or null" if optional else "true or false")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request, with what is known about it."""

    prompt: str
    """The request itself, without any chat template."""
    id: str = ""
    """Its id in its source, or empty."""
    category: str = ""
    """Harm category, such as BeaverTails' 14; XSTest's `type`; or empty."""
    stratum: str = ""
    """Which of the toy world's four strata it belongs to, or empty."""
    family: str = "none"
    """The jailbreak family that wraps it; `none` where nothing does."""
    harmful: bool | None = None
    """Whether a full answer would do harm; None where the source does not say."""
    split: str = ""
    """`train`, `validation`, `test`, or empty."""

    def __post_init__(self) -> None:
        _check_text(self, "prompt", filled=True)
        for name in ("id", "category", "stratum", "family", "split"):
            _check_text(self, name)
        _check_bool(self, "harmful", optional=True)


@dataclass(frozen=True, slots=True)
class LabelledResponse:
    """A response with an absolute label: is it safe?"""

    prompt: str
    """The request."""
    response: str
    """What was answered."""
    is_safe: bool
    """The label of the response (not of the request)."""
    category: str = ""
    """Harm category; several are joined by "; "; empty where there is none."""
    stratum: str = ""
    """Which of the toy world's four strata the request belongs to, or empty."""
    kind: str = ""
    """The sort of response (such as `refusal`), or empty."""
    family: str = "none"
    """The jailbreak family that wraps the request; `none` where nothing does."""
    harmful: bool | None = None
    """Whether this answer does harm by the ground truth; None where the source does not say."""
    helpfulness: float | None = None
    """How well the request is served, in [0, 1] for the toy world's oracle; None where unknown."""
    split: str = ""
    """`train`, `validation`, `test`, or empty."""

    def __post_init__(self) -> None:
        _check_text(self, "prompt", filled=True)
        _check_text(self, "response", filled=True)
        _check_bool(self, "is_safe")
        for name in ("category", "stratum", "kind", "family", "split"):
            _check_text(self, name)
        _check_bool(self, "harmful", optional=True)
        value = self.helpfulness
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Not math.isfinite: an integer of 400 digits is beyond every float.
        if value is not None and not (is_number and abs(value) <= sys.float_info.max):
            refuse("helpfulness", value, "a finite number or null")


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses to one request, judged for helpfulness and for harmlessness separately."""

    prompt: str
    """The request."""
    response_0: str
    """One response."""
    response_1: str
    """The other."""
    is_response_0_safe: bool | None
    """Absolute label of response 0; None where the source has none (HH-RLHF)."""
    is_response_1_safe: bool | None
    """Absolute label of response 1; None where the source has none."""
    better_response_id: int
    """0 or 1: the more helpful response, whatever its safety."""
    safer_response_id: int
    """0 or 1: the less harmful response."""
    category: str = ""
    """Harm category; several are joined by "; "; empty where there is none."""
    stratum: str = ""
    """Which of the toy world's four strata the request belongs to, or empty."""
    split: str = ""
    """`train`, `validation`, `test`, or empty."""

    def __post_init__(self) -> None:
        for name in ("prompt", "response_0", "response_1"):
            _check_text(self, name, filled=True)
        for name in ("is_response_0_safe", "is_response_1_safe"):
            _check_bool(self, name, optional=True)
        for name in ("better_response_id", "safer_response_id"):
            value = getattr(self, name)
            # True == 1 in Python, and 1.0 == 1: an id is neither.
            if type(value) is not int or value not in (0, 1):
                refuse(name, value, "0 or 1")
        for name in ("category", "stratum", "split"):
            _check_text(self, name)

    @property
    def responses(self) -> tuple[str, str]:
        """Both responses, by id."""
        return self.response_0, self.response_1

    @property
    def safety(self) -> tuple[bool | None, bool | None]:
        """Both absolute labels, by id."""
        return self.is_response_0_safe, self.is_response_1_safe

    @property
    def has_label_conflict(self) -> bool:
        """True where the "safer" response is labelled unsafe and the other one safe.

        PKU-SafeRLHF holds such rows; a ranking loss and a sign loss would then pull the same pair in
        opposite directions (and safe-rlhf's trainer stopped on them: its issue #181).
        """
        safer = self.safety[self.safer_response_id]
        other = self.safety[1 - self.safer_response_id]
        return safer is False and other is True


Record = Prompt | LabelledResponse | PreferencePair
RECORD_KINDS: tuple[type, ...] = (Prompt, LabelledResponse, PreferencePair)


def to_row(record: Record) -> dict[str, Any]:
    """The record as a flat dictionary, field name to value: a line of the kit's own JSONL."""
    return asdict(record)


def from_row(kind: type, row: dict[str, Any]) -> Record:
    """Build a `kind` from a dictionary in the kit's own field names; keys of no field are ignored.

    Raises UserError if a field without a default is missing, or a value is not what its field expects.
    """
    known = fields(kind)
    missing = [field.name for field in known if field.default is MISSING and field.name not in row]
    if missing:
        names = ", ".join(f"`{name}`" for name in missing)
        raise UnusableRow(f"field {names}: missing, expected every {kind.__name__} to have it")
    return kind(**{field.name: row[field.name] for field in known if field.name in row})


def normalise_prompt(prompt: str) -> str:
    """The prompt in NFKC, case folded, with single spaces: prompts equal in this form count as one."""
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


Objective = Literal["semantic", "safe_rlhf", "bradley_terry", "reward"]


def winner_id(pair: PreferencePair, objective: Objective) -> int:
    """0 or 1: the response whose score should be higher. For costs that is the more harmful one."""
    return pair.better_response_id if objective == "reward" else 1 - pair.safer_response_id
