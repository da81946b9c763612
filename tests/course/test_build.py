"""The thread of exercises that writes constrained_ppo.py: what is kept, what is put together, and that it trains."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from course import build, exercises
from course.solutions import read_solutions

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SOLUTIONS = {
    name: read_solutions(NOTEBOOKS / "solutions" / f"nb0{name[0]}.py")[name] for name in build.PIECES
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", build.PIECES)
def test_the_solutions_are_the_functions_of_the_file(name):
    tree = ast.parse(build.FILE.read_text())
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == build.PIECES[name])
    assert ast.dump(node) == ast.dump(ast.parse(SOLUTIONS[name].source).body[0])


def test_what_solves_an_exercise_is_kept_and_put_together(here, capsys):
    exercises.check("3.4", SOLUTIONS["3.4"].reference)
    exercises.check("5.4", SOLUTIONS["5.4"].wrong["forgets lambda"])
    assert "kept as mine/rectified_multiplier.py" in capsys.readouterr().out
    assert [path.name for path in build.MINE.iterdir()] == ["rectified_multiplier.py"]
    written = build.assemble()
    assert "yours rectified_multiplier; the course's gae, policy_loss" in capsys.readouterr().out
    assert ast.dump(ast.parse(written.read_text())) == ast.dump(ast.parse(build.FILE.read_text()))


def test_a_piece_of_another_name_is_not_kept(here, capsys):
    exercises.check("3.4", lambda violation, penalty: penalty if violation > 0 else 0.0)
    assert "has to be called `rectified_multiplier`" in capsys.readouterr().out
    assert not build.MINE.exists()


def test_your_file_trains_and_a_wrong_piece_shows(here):
    """The multiplier alone is wrong: the first step is the same, the multiplier and what follows are not."""
    small = {"steps": 2, "batch_size": 8, "minibatch_size": 8, "max_new_tokens": 8}
    build.MINE.mkdir()
    own = "def rectified_multiplier(violation, penalty):\n    return 7.0\n"
    (build.MINE / "rectified_multiplier.py").write_text(own)
    found = build.side_by_side(build.assemble(), **small)
    yours, theirs = found["yours"], found["the course's"]
    assert yours[0]["reward"] == pytest.approx(theirs[0]["reward"]), (
        "the answers of the first step are the same"
    )
    assert {row["multiplier"] for row in yours} == {7.0} != {row["multiplier"] for row in theirs}
