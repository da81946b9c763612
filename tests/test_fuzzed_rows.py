"""Whatever a row holds: records, or one sentence."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from test_schemas import pku, relaxed

from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt
from csrlhf_kit.data.schemas import SCHEMAS
from csrlhf_kit.data.sources import read_records
from csrlhf_kit.errors import UserError

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["Safe", "{[]: 1}", "{1: True}", "{'a': True}", '{"a": 1}', "{" * 300, "\n\nHuman: a\n\nAssistant: b"]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.booleans() | st.none(), max_size=2),
)
TYPICAL = {
    **pku(),
    **dict.fromkeys(("chosen", "rejected"), "\n\nHuman: a\n\nAssistant: b"),
    **dict.fromkeys(("is_safe", "harmful"), True),
    **dict.fromkeys(("response", "category", "stratum", "split", "kind", "family", "type"), "text"),
    **dict.fromkeys(("Goal", "Category", "extra"), "text"),
    **{f"{side}harm_category": {"theft": True} for side in ("", "response_0_", "response_1_")},
    "label": "Safe",
}
LAYOUTS = [*(sorted(schema.columns) for schema in SCHEMAS), ["prompt", "extra"]]


@settings(relaxed, max_examples=100)
@given(st.sampled_from(LAYOUTS), st.sampled_from([Prompt, LabelledResponse, PreferencePair]), st.data())
def test_any_row_is_read_or_refused_and_never_crashes(tmp_path, columns, kind, data):
    row = {name: TYPICAL[name] for name in columns}
    for name in data.draw(st.lists(st.sampled_from(columns), min_size=1, max_size=2)):
        row[name] = data.draw(ODD)
    (tmp_path / "odd.json").write_text(json.dumps([row]))
    try:
        loaded = read_records(tmp_path / "odd.json", kind)
    except UserError as error:
        assert str(error).startswith(str(tmp_path / "odd.json"))
    else:
        assert all(type(record) is kind for record in loaded.records)
        assert loaded.report["kept"] == len(loaded.records) > 0
