"""The widgets in a real JupyterLab: dragged, clicked, typed at, with a kernel that is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import nbformat

from csrlhf_kit import journal
from csrlhf_kit.data.records import LabelledResponse
from csrlhf_kit.data.sources import write_records
from csrlhf_kit.runs import Run, asked
from csrlhf_kit.widgets.labels import Pair, judgements

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
    journal.append(
        folder / "run" / "samples.jsonl", {"step": 5, "prompt": HOSTILE, "text": HOSTILE, "cost": 1.0}
    )
    labelled = [LabelledResponse(f"feed {n} {HOSTILE}", f"yes {n}", n % 2 == 0) for n in range(6)]
    write_records(folder / "labels.jsonl", labelled)
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "widgets.ipynb")


def open_notebook(page, lab) -> None:
    """Open the notebook with a kernel that is there already: JupyterLab asks for one where it is slow to come."""
    lab.start_kernel("widgets.ipynb")
    page.goto(lab.url("widgets.ipynb"))
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()


def output_of(page, cell: str):
    return (
        page.locator(".jp-Notebook .jp-CodeCell").nth(list(CELLS).index(cell)).locator(".jp-Cell-outputArea")
    )


def choose(page, menu: str, command: str) -> None:
    """Choose a command from a menu of JupyterLab's."""
    page.locator(".lm-MenuBar-item", has_text=menu).first.click()
    page.locator(f'.lm-Menu-item[data-command="{command}"]').first.click()


def run_all(page) -> None:
    choose(page, "Run", "runmenu:run-all")


def wait_for(what, seconds: float = 180) -> None:
    """Wait until `what()` holds, and say what it was if it never does."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.25)


def test_widgets_in_jupyterlab(lab, page, shoot):
    write_notebook(lab.folder)
    open_notebook(page, lab)
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
    wait_for(lambda: "1.50 times" not in story.inner_text())
    moved = float(story.inner_text().split(" times")[0].split(", ")[-1])
    assert moved > 1.5
    # and by mouse
    box = penalty.locator(".noUi-base").first.bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.up()
    wait_for(lambda: "below it" in story.inner_text())
    shoot("2-penalty", penalty)

    # a click on a point chooses its run
    tradeoff = output_of(page, "tradeoff")
    tradeoff.scroll_into_view_if_needed()
    menu = tradeoff.locator("select").nth(2)
    assert menu.locator("option:checked").inner_text() == "fixed_penalty"
    point = tradeoff.locator(".js-plotly-plot .scatterlayer .trace .points path").first.bounding_box()
    x, y = point["x"] + point["width"] / 2, point["y"] + point["height"] / 2
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y, steps=4)
    time.sleep(1)
    page.mouse.click(x, y)
    wait_for(lambda: menu.locator("option:checked").inner_text() == "ppo")
    wait_for(lambda: "ppo says" in tradeoff.inner_text())
    # the attack is text
    menu.select_option(HOSTILE)
    wait_for(lambda: f"{HOSTILE} says {HOSTILE}" in tradeoff.inner_text())
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
            wait_for(lambda: keys.inner_text() != before)  # noqa: B023
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
    wait_for(lambda: "step 6 of 20" in watched.inner_text())
    watched.get_by_role("button", name="pause").click()
    wait_for(lambda: asked(lab.folder / "run") == "pause")
    shoot("5-watch", watched)


def inspect_a_text(page, shoot) -> None:
    """Another prompt, typed in, is scored; the search for flips answers."""
    inspected = output_of(page, "inspect")
    inspected.scroll_into_view_if_needed()
    inspected.get_by_role("button", name="find flips").click()
    wait_for(lambda: "flip its verdict" in inspected.inner_text())
    shoot("6-inspect", inspected)
    inspected.locator("input[type=text]").first.fill("a harmless request")
    page.keyboard.press("Enter")
    wait_for(lambda: "harmless" in " ".join(inspected.locator(".xaxislayer-above text").all_text_contents()))


def fight_in_the_arena(page, lab, shoot) -> None:
    """Ask by keyboard, see both answers as text, vote by keyboard, and only then read the names."""
    ring = output_of(page, "arena")
    ring.locator("input[type=text]").first.fill(f"hello {HOSTILE}")
    page.keyboard.press("Enter")
    wait_for(lambda: all(f"{who} says {HOSTILE}" in ring.inner_text() for who in ("one", "two")))
    assert "left was" not in ring.inner_text()
    ring.locator(".csrlhf-keys").focus()
    page.keyboard.press("1")
    wait_for(lambda: "left was" in ring.inner_text())
    shoot("7-arena", ring)
    assert len(journal.read(lab.folder / "arena" / "votes.jsonl")) == 1


def test_widgets_in_the_dark_theme_and_after_a_second_run(lab, page, shoot):
    lab.set("apputils-extension/themes", {"theme": "JupyterLab Dark"})
    write_notebook(lab.folder)
    open_notebook(page, lab)
    for _ in range(2):  # closing and running again
        run_all(page)
        output_of(page, "again").locator(".js-plotly-plot .main-svg").first.wait_for()
        output_of(page, "annotate").locator(".csrlhf-keys").wait_for()
        time.sleep(3)
    assert "3 of 5 pairs" in output_of(page, "annotate").inner_text(), "labelling goes on where it was"
    for cell in ("penalty", "tradeoff", "annotate", "inspect"):
        output_of(page, cell).scroll_into_view_if_needed()
        shoot(f"8-dark-{cell}", output_of(page, cell))
    assert page.evaluate("window.injected") is None
    assert page.watch.errors == [] and page.watch.strangers == []
    choose(page, "File", "docmanager:save")
    stored = lab.folder / "widgets.ipynb"
    wait_for(lambda: any(cell.get("outputs") for cell in json.loads(stored.read_text())["cells"]))
    assert "widgets" not in json.loads(stored.read_text())["metadata"]
