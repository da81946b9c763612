"""Every exercise's reference solution passes its check, and plausible wrong ones fail it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from course import Predictions, exercises, tools
from course.solutions import read_solutions, solution_cells, solutions_path
from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.static import static_svg

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
STORED = sorted(NOTEBOOKS.glob("*.ipynb"))
SOLUTIONS = {
    name: solution
    for path in sorted((NOTEBOOKS / "solutions").glob("nb*.py"))
    for name, solution in read_solutions(path).items()
}
WRONG = [(name, what) for name, solution in SOLUTIONS.items() for what in solution.wrong]


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_reference_solution_passes(name):
    assert exercises.verdict(name, SOLUTIONS[name].reference) == ("solved", "")


@pytest.mark.parametrize(("name", "what"), WRONG, ids=lambda value: value.replace(" ", "-"))
def test_a_wrong_solution_fails_with_a_sentence(name, what):
    state, message = exercises.verdict(name, SOLUTIONS[name].wrong[what])
    assert state == "not yet"
    assert len(message) > 20, message


@pytest.mark.parametrize("name", SOLUTIONS)
def test_two_wrong_variants_at_least_and_each_says_what_is_wrong(name):
    wrong = SOLUTIONS[name].wrong
    assert len(wrong) >= 2
    assert all(function.__doc__ for function in wrong.values())


@pytest.mark.parametrize("name", SOLUTIONS)
def test_nothing_is_not_a_solution_and_a_crash_is_told(name):
    assert exercises.verdict(name, lambda *_, **__: None).state == "not started"
    assert exercises.verdict(name, lambda *_, **__: ...).state == "not started"
    state, message = exercises.verdict(name, lambda *_, **__: 1 / 0)
    assert state == "not yet" and "ZeroDivisionError" in message
    assert exercises.verdict(name, lambda *_, **__: "seven").state == "not yet"


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_constant_is_no_solution(name):
    """The right answer of the first case, whatever is asked, is noticed."""
    first: list = []

    def parrot(*arguments, **options):
        if not first:
            first.append(SOLUTIONS[name].reference(*arguments, **options))
        return first[0]

    assert exercises.verdict(name, parrot).state == "not yet"


def test_the_answer_itself_may_not_be_called():
    def by_method(problem, policy):
        return problem.slater_bound(policy)

    def inside(scores, unsafe):
        from sklearn.metrics import roc_auc_score

        return (lambda: roc_auc_score(unsafe, scores))()

    for name, borrowed in (("3.1", by_method), ("2.1", inside)):
        state, message = exercises.verdict(name, borrowed)
        assert state == "not yet" and "is the answer itself" in message


def test_an_exception_is_shown_with_its_line(capsys):
    def slater_bound(problem, policy):
        best = problem.constrained_optimum()
        return best.objectiv

    line = "in its line 3, `return best.objectiv`: 'Solution' object has no attribute 'objectiv'"
    assert line in exercises.verdict("3.1", slater_bound).message
    exercises.look("3.1", slater_bound)
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_picture_shows_the_attempt(name):
    """Without an attempt, with a failing one, a wrong one and the right one: a figure, and they differ."""
    picture = exercises._part(name, "picture")
    solution = SOLUTIONS[name]
    empty = static_svg(picture(lambda *_, **__: None))
    assert static_svg(picture(lambda *_, **__: 1 / 0)) == empty
    right = static_svg(picture(solution.reference))
    assert right != empty
    assert any(static_svg(picture(wrong)) not in (right, empty) for wrong in solution.wrong.values())


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_notebook_has_whole_exercises(path):
    """Each: difficulty and minutes, a stub that is looked at, a check, hints, a solution; one planted bug."""
    notebook = tools.read(path)
    names = list(read_solutions(solutions_path(path)))
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = "\n".join(cell.source for cell in tools.code_cells(notebook))
    assert len(names) >= 3 and list(solution_cells(notebook)) == names
    for name in names:
        heading = rf"### Exercise {re.escape(name)} · .+\n\n\*\*[●○]{{3}} · \d+ minutes"
        assert re.search(heading, text), f"exercise {name} has no title with difficulty and minutes"
        assert f'look("{name}", ' in code and f'check("{name}", ' in code
    assert text.count("<summary>Hint") >= len(names)
    assert "planted bug" in text
    assert "predictions.score()" in code and code.count("predictions.record(") >= 3
    assert "## Limits" in text and "## Sources" in text and "arXiv" in text


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_stubs_are_unsolved_and_the_solutions_fit_into_the_notebook(path, capsys):
    """The stored notebook gives nothing away, and with the solutions in place its checks say solved."""
    notebook = tools.read(path)
    solutions = read_solutions(solutions_path(path))
    for name, solution in solutions.items():
        cell = next(c for c in tools.code_cells(notebook) if f'look("{name}", ' in c.source)
        space: dict = {}
        exec("from __future__ import annotations\nimport numpy as np\n" + _stub(cell.source), space)
        stub = space[solution.reference.__name__]
        assert exercises.verdict(name, stub).state != "solved"
        assert exercises.verdict(name, solution.reference).state == "solved"
        verdicts = [
            output.text
            for c in tools.code_cells(notebook)
            if f'check("{name}", ' in c.source
            for output in c.outputs
        ]
        assert verdicts and all("solved" not in verdict for verdict in verdicts)


def _stub(source: str) -> str:
    """A stub cell without the line that shows its picture."""
    return "\n".join(line for line in source.splitlines() if not line.startswith("exercises.look("))


def test_an_unknown_exercise_is_said_to_be_one():
    for name in ("3.99", "77.1", "x"):
        with pytest.raises(UserError, match="there is no exercise"):
            exercises.verdict(name, len)


def test_check_prints_and_progress_counts(capsys, monkeypatch):
    monkeypatch.setattr(exercises, "_STATES", {})
    reference = SOLUTIONS["3.1"].reference
    exercises.check("3.1", reference)
    exercises.check("3.2", lambda *_: None)
    exercises.progress(3)
    assert capsys.readouterr().out.splitlines() == [
        "Exercise 3.1 · solved.",
        "Exercise 3.2 · not started: the function returns None. Replace the line that says so.",
        "Exercises solved: 1 of 2",
    ]


def test_same_compares_shape_value_and_type():
    exercises.same([1.0, 2.0], [1.0, 2.0 + 1e-9], "x")
    for found, words in (
        ([1.0], "shape"),
        ("a", "a number was expected"),
        ([1.0, 3.0], "2 was expected, your function gives 3"),
        ([1.0, float("nan")], "gives nan"),
    ):
        with pytest.raises(exercises.Mistake, match=words):
            exercises.same(found, [1.0, 2.0], "x")


def test_predictions_are_recorded_revealed_and_scored(capsys):
    predictions = Predictions()
    predictions.record("first", "a")
    predictions.record("second", "b", among="ab")
    predictions.record("never revealed", "c")
    predictions.reveal("first", "a")
    predictions.reveal("second", "a")
    predictions.score()
    out = capsys.readouterr().out
    assert "first: you chose (a)" in out and "second: it is (a); you chose (b)." in out
    assert out.endswith("Predictions right: 1 of 2\n") and out.count("a surprise") == 1
    predictions.record("left empty", "")
    predictions.reveal("left empty", "c")
    predictions.score()
    out = capsys.readouterr().out
    assert "left empty: write a, b or c between the quotes" in out
    assert "it is (c); you made no prediction." in out
    assert out.endswith("Predictions right: 1 of 2, and 1 without a letter\n")
    with pytest.raises(UserError, match="'d' is no choice"):
        predictions.record("third", "d")
    with pytest.raises(UserError, match="no choice was recorded"):
        predictions.reveal("fourth", "a")
    with pytest.raises(UserError, match="none of the choices"):
        predictions.reveal("second", "c")
