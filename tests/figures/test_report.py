"""One page, self-contained, escaped, and true to `results.json`."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

import pytest
from example_results import EVIL, POLICIES, example_results

from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.results import read_results, recorded_policies
from csrlhf_kit.figures.report import frontier_caption, headline, portable, write_report
from csrlhf_kit.figures.results import seeds


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "results.json").write_text(json.dumps(example_results()))
    path = write_report(folder, read_results(folder / "results.json"))
    return folder, path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags, addresses and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        attributes = dict(attrs)
        self.links += [attributes[key] for key in ("href", "src", "xlink:href") if attributes.get(key)]
        if "id" in attributes:
            self.ids.append(attributes["id"])

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


def test_page_is_one_file_that_loads_nothing(run):
    folder, text = run
    page = Page(text)
    assert all(link.startswith("#") for link in page.links), page.links
    for part in (link[1:] for link in page.links):
        assert part in page.ids
    assert len(text.encode()) < 6_000_000
    assert text.count("plotly.js v") == 1
    assert {p.suffix for p in (folder / "figures").iterdir()} == {".svg"}
    assert not list(folder.glob(".*")), "temporary files stay behind"


def test_every_figure_has_its_static_twin_in_the_page_and_as_a_file(run):
    folder, text = run
    for path in (folder / "figures").glob("*.svg"):
        assert path.read_text(encoding="utf-8").strip() in text
        assert f'id="data-{path.stem}"' in text
    assert len(list((folder / "figures").iterdir())) == 5


def test_model_text_is_shown_and_never_run(run):
    _, text = run
    assert EVIL not in text
    assert EVIL in "".join(Page(text).words)


def test_no_machine_path_gets_in(run):
    _, text = run
    assert "/somewhere/on/a" not in text
    assert "…/tiny_base" in html.unescape(text)
    assert portable({"a": ["C:\\Users\\me\\base", "org/model", "/", "see /this"]}) == {
        "a": ["…/base", "org/model", "/", "see /this"]
    }


def test_numbers_in_the_table_are_the_results(run):
    _, text = run
    words = re.sub(r"\s+", " ", " ".join(Page(text).words))
    for name, policy in example_results()["policies"].items():
        harm = policy["harmful_nominal"]
        assert f"{100 * harm['rate']:.1f}" in words, name
        assert f"{100 * harm['low']:.1f} to {100 * harm['high']:.1f}" in words, name


def test_headline_is_computed():
    policies = example_results()["policies"]
    text = headline(policies)
    low, high = (100 * policies["fixed_penalty"]["harmful_nominal"][key] for key in ("low", "high"))
    assert f"{low:.1f} to {high:.1f}%" in text
    kept = policies["fixed_penalty"]["helpfulness"] / policies["ppo"]["helpfulness"]
    assert f"{kept:.0%} of unconstrained PPO" in text
    policies["fixed_penalty"]["harmful_nominal"]["rate"] = 0.5
    assert "50.0%" in headline(policies)


@pytest.mark.parametrize("kept", [("sft",), ("sft", "lagrangian"), ("ppo", "p3o"), tuple(POLICIES)])
def test_headline_copes_with_any_set_of_policies(kept):
    policies = example_results()["policies"]
    policies["p3o"] = policies["linear_penalty"]
    text = headline({name: policies[name] for name in kept})
    assert text[0].isupper() and text.endswith(".")


def test_optional_parts_may_be_missing(tmp_path):
    results = example_results()
    for key in ("curves", "samples"):
        del results[key]
    for policy in results["policies"].values():
        del policy["by_family"]
        policy["multiplier"] = None
    for model in results["cost_models"].values():
        del model["strata"], model["calibration"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = write_report(tmp_path, read_results(tmp_path / "results.json")).read_text(encoding="utf-8")
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["tradeoff.svg"]
    assert 'id="samples"' not in text


def test_a_predicted_frontier_is_drawn_with_the_policies(tmp_path):
    points = [
        {"multiplier": m, "reward": 1.0, "cost": -m, "kl": 0.1, "effective_samples": 9.0 / (1 + m)}
        for m in (0, 1)
    ]
    results = example_results() | {"frontier": {"threshold": -0.5, "points": points}}
    told = {"prompts": 40, "samples": 8, "multiplier": 1.234, "interval": [0.5, None]}
    results["frontier"] |= told | {"warnings": ["draw more samples"]}
    for name, policy in results["policies"].items():
        policy["shortfall"] = 0.25 if name == "ppo" else 0.5
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = write_report(tmp_path, read_results(tmp_path / "results.json")).read_text(encoding="utf-8")
    assert 'id="plate-frontier"' in text
    assert "predicted from reference samples" in (tmp_path / "figures" / "frontier.svg").read_text()
    words = " ".join("".join(Page(text).words).split())
    assert (
        "Here 8 answers to each of 40 prompts, which cannot show a policy further than log 8 = 2.1 nats"
        in words
    )
    assert "optimal multiplier of 1.2 (95% interval 0.5 to any)" in words
    assert "too low" in words, "a point with 4.5 effective samples is a guess"
    assert "Draw more samples." in words
    ppo = results["policies"]["ppo"]
    assert f"{ppo['reward'] + 0.25:.2f}".replace("-", "\N{MINUS SIGN}") in words


def test_a_frontier_without_numbers_of_its_own_needs_no_words_for_them():
    points = [{"multiplier": 0, "reward": 1.0, "cost": 0.0, "kl": 0.1, "effective_samples": 50.0}]
    text = frontier_caption({"threshold": -0.5, "points": points})
    assert "too low" not in text and "nats from" not in text and "interval" not in text


@pytest.mark.parametrize(
    "path",
    [
        "seed",
        "policies",
        "versions",
        "policies.ppo.harmful_jailbreak",
        "policies.ppo.harmful_nominal.low",
        "policies.sft.kl",
        "cost_models.semantic.ece",
    ],
)
def test_a_missing_key_is_named(tmp_path, path):
    results = example_results()
    holder = results
    *parents, last = path.split(".")
    for part in parents:
        holder = holder[part]
    del holder[last]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=re.escape(f"`{path}` is missing")):
        write_report(tmp_path, read_results(tmp_path / "results.json"))
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"], "half a report was written"


def test_other_mistakes_get_one_sentence(tmp_path):
    file = tmp_path / "results.json"
    with pytest.raises(UserError, match="no such file"):
        read_results(file)
    file.write_text("{")
    with pytest.raises(UserError, match="expected JSON"):
        read_results(file)
    file.write_text("[]")
    with pytest.raises(UserError, match="object at the top"):
        read_results(file)
    results = example_results()
    results["policies"]["ppo"]["kl"] = "high"
    file.write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"`policies.ppo.kl` is str, expected a number"):
        read_results(file)
    file.write_text(json.dumps(example_results() | {"policies": {}}))
    with pytest.raises(UserError, match="`policies` is empty"):
        read_results(file)


def test_report_is_deterministic(run):
    folder, text = run
    assert write_report(folder, read_results(folder / "results.json")).read_text(encoding="utf-8") == text


def test_your_run_stands_among_the_recorded_ones(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(example_results()))
    results = read_results(tmp_path / "results.json")
    assert 'id="seeds"' not in write_report(tmp_path, results).read_text(encoding="utf-8")
    other = {name: {**row, "helpfulness": 0.125} for name, row in results["policies"].items()}
    page = write_report(tmp_path, results | {"recorded": [other, results["policies"]]}).read_text(
        encoding="utf-8"
    )
    assert 'id="seeds"' in page and "circles 2 recorded runs" in page
    assert "Older records" in page
    judged_alike = {name: {**row, "outcomes": {}} for name, row in other.items()}
    page = write_report(tmp_path, results | {"recorded": [judged_alike]}).read_text(encoding="utf-8")
    assert 'id="seeds"' in page and "Older records" not in page
    drawn = seeds([other, results["policies"]], results["policies"]).data
    theirs, mine = drawn[-2:]  # of the last panel, helpfulness
    assert set(theirs.x) >= {0.125} and len(theirs.x) == 2 * len(mine.x) == 2 * len(POLICIES)
    assert list(mine.x) == [round(row["helpfulness"], 4) for row in results["policies"].values()]
    assert seeds([other]).data[-1].x == ()


def test_recorded_runs_are_those_with_the_same_settings():
    main = read_results(data_folder() / "recorded" / "results.json")
    found = recorded_policies({**main["config"], "seed": 41, "judged_on": "test"})
    assert len(found) >= 3 and main["policies"] in found
    assert not recorded_policies({**main["config"], "threshold": 0.03})
