"""The widgets in a real JupyterLab: dragged, clicked, typed at, with a kernel that is killed in the middle."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import nbformat
from driving import finished, open_notebook, run_all, save, wait_for

from csrlhf_kit import files
from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.data.sources import write_records
from csrlhf_kit.runs import Run, stop_request
from csrlhf_kit.widgets.labels import Pair, judgements

NOTEBOOK = "widgets.ipynb"
HOSTILE = "<script>window.injected = 1</script><img src=x onerror='window.injected = 2'> **bold** [link](http://example.com/) $x$"

CELLS = {
    "start": "import os, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))\n"
    "from material import *\nfrom csrlhf_kit.widgets import *",
    "penalty": "explore_penalty()",
    "tradeoff": "explore_tradeoff(RESULTS)",
    "annotate": "annotate(PAIRS, folder='labels', annotator='browser')",
    "watch": "watch('run', every=0.5)",
    "inspect": "inspect_cost({'semantic': score}, prompt=ATTACK, response='yes', data='labels.jsonl')",
    "arena": "arena(POLICIES, folder='arena')",
    "again": "explore_penalty(multiple=0.5)",
    "figure": "from csrlhf_kit.figures import results, static\nstatic.show(results.tradeoff(RESULTS['policies']))",
    "alive": "from ipywidgets.widgets.widget import _instances\nlen(_instances)",
}
SCORER = """
def score(prompts, responses):
    return [1.0 if 'script' in prompt else -1.0 for prompt in prompts]

def speaker(name):
    return lambda messages: iter([name, ' says ', ATTACK])

POLICIES = {'tortoise': speaker('one'), 'hare': speaker('two')}
"""


def material() -> str:
    """A module with a record whose names and answers are an attack, and pairs of the same kind."""

    def policy(harm: float, helpfulness: float) -> dict:
        rate = {"rate": harm, "low": harm / 2, "high": harm + 0.1, "n": 100}
        return {"harmful_nominal": rate, "harmful_jailbreak": rate, "helpfulness": helpfulness}

    row = {
        "objective/cost": 0.2,
        "constraint/window_cost": 0.2,
        "constraint/multiplier": 6.0,
        "objective/reward": 1.0,
    }
    names = {"ppo": policy(0.8, 0.6), "fixed_penalty": policy(0.1, 0.55), HOSTILE: policy(0.4, 0.3)}
    said = {name: {"text": f"{name} says {HOSTILE}", "harmful": False, "helpfulness": 0.5} for name in names}
    results = {
        "config": {"threshold": 0.05},
        "policies": names,
        "curves": {"fixed_penalty": [{**row, "objective/cost": 0.2 / n} for n in range(1, 30)]},
        "samples": [{"prompt": HOSTILE, "responses": said}],
    }
    pairs = [Pair(f"{n} {HOSTILE}", f"yes {n} {HOSTILE}", f"no {n}") for n in range(5)]
    lines = ["from csrlhf_kit.widgets.labels import Pair", f"RESULTS = {results!r}", f"PAIRS = {pairs!r}"]
    return "\n".join([*lines, f"ATTACK = {HOSTILE!r}", SCORER])


def metrics(step: int) -> dict:
    """A row as PPO writes it."""
    times = {"time/rollout": 1.0, "time/score": 0.5, "time/update": 0.5}
    told = {"objective/harmful": 0.5 / step, "objective/cost": 0.4 / step, "constraint/threshold": 0.05}
    return {
        "step": step,
        "constraint/multiplier": 6.0,
        "objective/reward": 0.1 * step,
        "objective/kl": step,
        **told,
        **times,
    }


def write_notebook(folder: Path) -> None:
    (folder / "material.py").write_text(material())
    if not (folder / "run").exists():
        run = Run.open(folder / "run", {"steps": 20, "batch_size": 64})
        for step in range(1, 6):
            run.log(metrics(step))
    files.append(
        folder / "run" / "samples.jsonl", {"step": 5, "prompt": HOSTILE, "text": HOSTILE, "cost": 1.0}
    )
    labelled = [LabelledResponse(f"feed {n} {HOSTILE}", f"yes {n}", n % 2 == 0) for n in range(6)]
    write_records(folder / "labels.jsonl", labelled)
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / NOTEBOOK)


def output_of(page, cell: str):
    return (
        page.locator(".jp-Notebook .jp-CodeCell").nth(list(CELLS).index(cell)).locator(".jp-Cell-outputArea")
    )


def test_widgets_in_jupyterlab(lab, page, shoot):
    write_notebook(lab.folder)
    open_notebook(page, lab, NOTEBOOK)
    run_all(page)
    for cell in ("penalty", "tradeoff", "watch", "inspect", "again"):
        output_of(page, cell).locator(".js-plotly-plot .main-svg").first.wait_for()
    output_of(page, "annotate").locator(".csrlhf-keys").wait_for()
    shoot("1-run-all")

    # λ, by keyboard
    penalty = output_of(page, "penalty")
    story = penalty.locator(".widget-html").last
    assert "1.50 times" in story.inner_text()
    penalty.locator(".noUi-handle").first.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    wait_for(page, lambda: "1.50 times" not in story.inner_text())
    moved = float(story.inner_text().split(" times")[0].split(", ")[-1])
    assert moved > 1.5
    # and by mouse
    box = penalty.locator(".noUi-base").first.bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.up()
    wait_for(page, lambda: "below it" in story.inner_text())
    shoot("2-penalty", penalty)

    # a click on a point chooses its run
    tradeoff = output_of(page, "tradeoff")
    tradeoff.scroll_into_view_if_needed()
    menu = tradeoff.locator("select").first
    assert menu.locator("option:checked").inner_text() == "fixed_penalty"
    point = tradeoff.locator(".js-plotly-plot .scatterlayer .trace .points path").first.bounding_box()
    x, y = point["x"] + point["width"] / 2, point["y"] + point["height"] / 2
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y, steps=4)
    page.wait_for_timeout(500)
    page.mouse.click(x, y)
    wait_for(page, lambda: menu.locator("option:checked").inner_text() == "ppo")
    wait_for(page, lambda: "ppo says" in tradeoff.inner_text())
    # the attack is text
    menu.select_option(HOSTILE)
    wait_for(page, lambda: f"{HOSTILE} says {HOSTILE}" in tradeoff.inner_text())
    legend = tradeoff.locator(".legendtext").all_text_contents()
    assert any(name.startswith("<script>window.injected") for name in legend), legend
    shoot("3-tradeoff", tradeoff)

    # three pairs by keyboard
    desk = output_of(page, "annotate")
    keys = desk.locator(".csrlhf-keys")
    keys.focus()
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    assert HOSTILE in desk.inner_text()
    for pair in range(3):
        for key in ("1", "2", "ArrowLeft"):
            before = keys.inner_text()
            page.keyboard.press(key)
            wait_for(page, lambda: keys.inner_text() != before)  # noqa: B023
        assert f"{pair + 1} of 5 pairs" in keys.inner_text()
    shoot("4-annotate", desk)
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells, "a label is no Jupyter shortcut"

    watch_a_run(page, lab, shoot)
    inspect_a_text(page, shoot)
    fight_in_the_arena(page, lab, shoot)

    assert page.evaluate("window.injected") is None
    assert page.watch.errors == []
    assert page.watch.strangers == []

    # the kernel dies; what was labelled is there
    os.kill(int((lab.folder / "pid").read_text()), signal.SIGKILL)
    found = judgements(lab.folder / "labels")
    assert len(found) == 3 and {j.annotator for j in found} == {"browser"}


def watch_a_run(page, lab, shoot) -> None:
    """Rows that another process writes show up by themselves, and a button asks the run to pause."""
    watched = output_of(page, "watch")
    watched.scroll_into_view_if_needed()
    assert "step 5 of 20" in watched.inner_text() and HOSTILE in watched.inner_text()
    Run(lab.folder / "run").log(metrics(6))
    wait_for(page, lambda: "step 6 of 20" in watched.inner_text())
    watched.get_by_role("button", name="pause").click()
    wait_for(page, lambda: stop_request(lab.folder / "run") == "pause")
    shoot("5-watch", watched)


def inspect_a_text(page, shoot) -> None:
    """Another prompt, typed in, is scored; the search for flips answers."""
    inspected = output_of(page, "inspect")
    inspected.scroll_into_view_if_needed()
    inspected.get_by_role("button", name="find words that flip it").click()
    wait_for(page, lambda: "flip its verdict" in inspected.inner_text())
    shoot("6-inspect", inspected)
    inspected.locator("input[type=text]").first.fill("a harmless request")
    page.keyboard.press("Enter")
    wait_for(
        page, lambda: "harmless" in " ".join(inspected.locator(".xaxislayer-above text").all_text_contents())
    )


def fight_in_the_arena(page, lab, shoot) -> None:
    """Ask by keyboard, see both answers as text, vote by keyboard, and only then read the names."""
    ring = output_of(page, "arena")
    ring.locator("input[type=text]").first.fill(f"hello {HOSTILE}")
    page.keyboard.press("Enter")
    wait_for(page, lambda: all(f"{who} says {HOSTILE}" in ring.inner_text() for who in ("one", "two")))
    assert "left was" not in ring.inner_text()
    ring.locator(".csrlhf-keys").focus()
    page.keyboard.press("1")
    wait_for(page, lambda: "left was" in ring.inner_text())
    shoot("7-arena", ring)
    assert len(files.read(lab.folder / "arena" / "votes.jsonl")) == 1


def test_widgets_in_the_dark_theme_and_after_a_second_run(lab, page, shoot):
    lab.set("apputils-extension/themes", {"theme": "JupyterLab Dark"})
    write_notebook(lab.folder)
    open_notebook(page, lab, NOTEBOOK)
    alive = []
    for _ in range(2):  # closing and running again
        run_all(page)
        wait_for(page, lambda: finished(page))
        for cell in ("again", "figure"):
            output_of(page, cell).locator(".js-plotly-plot .main-svg").first.wait_for()
        alive.append(output_of(page, "alive").inner_text().split()[-1])
    assert alive[0] == alive[1], "running again closes what a cell has shown before"
    assert "3 of 5 pairs" in output_of(page, "annotate").inner_text(), "labelling goes on where it was"
    for cell in ("penalty", "tradeoff", "annotate", "watch", "inspect", "arena"):
        output_of(page, cell).scroll_into_view_if_needed()
        shoot(f"8-dark-{cell}", output_of(page, cell))
    for cell in ("penalty", "tradeoff", "watch", "inspect", "figure"):
        plot = output_of(page, cell).locator(".js-plotly-plot").first
        shown = "one => { const look = getComputedStyle(one); return [look.fill, look.backgroundColor]; }"
        assert plot.locator(".gtitle").evaluate(shown)[0] == "rgb(230, 237, 243)", cell
        assert plot.locator(".main-svg").first.evaluate(shown)[1] == "rgba(0, 0, 0, 0)", cell
    stored = save(page, lab.folder / NOTEBOOK)
    assert any(cell.get("outputs") for cell in stored["cells"]) and "widgets" not in stored["metadata"]
    assert page.evaluate("window.injected") is None
    assert page.watch.errors == [] and page.watch.strangers == []
