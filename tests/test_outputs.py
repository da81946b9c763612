"""Where commands write: refused before the work, one process at a time, and no model is ever lost."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from csrlhf_kit import cli
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import write_atomic
from csrlhf_kit.outputs import check_file, check_folder, check_model_folder, lock, replace_folder
from csrlhf_kit.runs import Run
from csrlhf_kit.world.build import DataConfig, make_data


class Killed(BaseException):
    """Stands for kill -9: nobody catches it."""


def model(text: str, *more: str):
    """A function that writes a model of three files and `more`, each of which says `text`."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for name in ("scorer.json", "config.json", "model.safetensors", *more):
            (folder / name).write_text(text)

    return write


def said(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def stop(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the process be killed before its rename number `after`."""
    rename, count = os.rename, 0

    def counted(*names, **options):
        nonlocal count
        count += 1
        if count > after:
            raise Killed
        return rename(*names, **options)

    monkeypatch.setattr(os, "rename", counted)


# --- folders that are replaced ---


@pytest.mark.parametrize("kind", ["new", "folder", "link", "link to nothing", "here", "above", "mount"])
def test_a_model_is_written_wherever_out_leads(tmp_path, monkeypatch, kind):
    real = tmp_path / "real"
    out = real
    if kind not in ("new", "link to nothing"):
        real.mkdir()
    if kind.startswith("link"):
        out = tmp_path / "link"
        out.symlink_to(real, target_is_directory=True)
    if kind in ("here", "above"):
        if kind == "above":
            (real / "below").mkdir()
        monkeypatch.chdir(real if kind == "here" else real / "below")
        out = Path("." if kind == "here" else "..")
    if kind == "mount":  # as the kernel refuses it
        rename = os.rename

        def refused(source, target, **options):
            if Path(source) == real:
                raise OSError(errno.EBUSY, "Device or resource busy", str(source))
            rename(source, target, **options)

        monkeypatch.setattr(os, "rename", refused)
    for text, more in (("first", ("predictions.jsonl",)), ("second", ())):
        if kind != "above":
            check_model_folder(out)
        replace_folder(out, model(text, *more))
        assert set(said(real).values()) == {text} and len(said(real)) == 3 + len(more)
    assert out.is_symlink() == kind.startswith("link")
    names = {"real", *(["link"] if kind.startswith("link") else [])}
    assert {path.name for path in tmp_path.iterdir()} == names, "nothing is left beside it"


def test_what_is_no_model_stays(tmp_path):
    replace_folder(tmp_path / "m", model("old", "predictions.jsonl"))
    (tmp_path / "m" / "thesis.tex").write_text("years of work")
    (tmp_path / "m" / "later").mkdir()
    check_model_folder(tmp_path / "m")
    replace_folder(tmp_path / "m", model("new"))
    assert (tmp_path / "m" / "later").is_dir()
    assert said(tmp_path / "m").pop("thesis.tex") == "years of work" and len(said(tmp_path / "m")) == 4


def test_a_volume_that_is_new_counts_as_empty(tmp_path):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".gitkeep").touch()
    check_model_folder(tmp_path)
    replace_folder(tmp_path, model("new"))
    assert (tmp_path / "lost+found").is_dir() and len(said(tmp_path)) == 4


@pytest.mark.parametrize("moment", range(9))
def test_whenever_it_is_killed_one_whole_model_is_there_and_the_next_look_finds_it(tmp_path, moment):
    out = tmp_path / "m"
    replace_folder(out, model("old", "predictions.jsonl"))
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, moment)
        try:
            replace_folder(out, model("new"))
        except Killed:
            held = [folder for folder in (out, *out.iterdir()) if folder.is_dir()]
            texts = [text for folder in held for text in said(folder).values()]
            assert texts.count("new") == 3, "the new one was whole before the old one was touched"
    check_model_folder(out)
    assert set(said(out).values()) == {"new"} and len(said(out)) == 3
    assert [path.name for path in out.iterdir() if path.is_dir()] == []


def test_a_full_disk_leaves_the_old_model(tmp_path):
    def full(folder: Path) -> None:
        model("half")(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    for out in (tmp_path / "m", tmp_path / "none"):
        if out.name == "m":
            replace_folder(out, model("old"))
        with pytest.raises(OSError, match="No space"):
            replace_folder(out, full)
    assert set(said(tmp_path / "m").values()) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert len(list((tmp_path / "m").iterdir())) == 3


def test_files_that_cannot_be_moved_are_kept_beside(tmp_path, monkeypatch):
    replace_folder(tmp_path / "m", model("old"))

    def refused(*names, **options):
        raise OSError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refused)
        with pytest.raises(UserError, match="the new model is in") as error:
            replace_folder(tmp_path / "m", model("new"))
    kept = Path(re.search(r"is in (.*)", str(error.value))[1])
    assert set(said(kept).values()) == {"new"} and set(said(tmp_path / "m").values()) == {"old"}


def test_the_base_that_is_trained_is_not_replaced(tmp_path):
    replace_folder(tmp_path / "base", model("base"))
    with pytest.raises(UserError, match="is the base itself"):
        check_model_folder(tmp_path / "base", str(tmp_path / "x" / ".." / "base"))


def test_half_a_world_never_stands_where_a_whole_one_stood(tmp_path, monkeypatch):
    from csrlhf_kit.world import build

    config = DataConfig(out=tmp_path / "w", train_prompts=64, train_labels=16, train_pairs=16)
    make_data(config)
    before = said(config.out)
    write, count = build.write_records, []

    def full(path, records):
        count.append(path)
        if len(count) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, records)

    monkeypatch.setattr(build, "write_records", full)
    config.seed = 1
    with pytest.raises(OSError, match="No space"):
        make_data(config)
    assert said(config.out) == before and len(list(config.out.iterdir())) == len(before)


# --- single files ---


def test_a_file_is_written_through_a_link_and_into_a_mount(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomic(tmp_path / "link", "one")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "one"

    def busy(*names):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "replace", busy)
    write_atomic(tmp_path / "real", "two")
    assert (tmp_path / "real").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


# --- places that cannot be written ---

INPUTS = "--reward no/r --cost no/c --prompts no.jsonl --base ./no"
COMMANDS = {  # the arguments before the place, whose inputs are not there: the place comes first
    "run": "run --base ./no --out",
    "sft": "sft --base ./no --data no.jsonl --out",
    "cost-model": "cost-model --base ./no --data no.jsonl --out",
    "reward-model": "reward-model --base ./no --data no.jsonl --out",
    "ppo": f"ppo {INPUTS} --out",
    "direct": "direct --base ./no --data no.jsonl --out",
    "sweep": "sweep --base ./no --out",
    "sweep's tables": "sweep --base ./no --out OK --record",
    "rounds": "rounds --base ./no --out",
    "export": "export no/run --out",
    "claims": "claims --data . --out",
    "make-data": "make-data --out",
    "make-base": "make-base --out",
    "evaluate": f"evaluate {INPUTS} --out",
    "red-team": "red-team --base ./no --out",
    "arena": "arena --runs no/run --out",
    "arena of two": "arena no/a no/b --out",
    "plan": "plan --base ./no --out",
    "suggest-penalty": "suggest-penalty --scores no.jsonl --beta 1 --threshold 0 --output",
    "certify": "certify no/run --output",
}
FOLDERS = list(COMMANDS)[:13]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_is_one_sentence_before_anything_else(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    words = COMMANDS[command].split()
    option = words[-1]
    bad = ["file/x", "file/x/y", f"{'n' * 300}", f"deep/{'n' * 300}"]
    bad += ["file"] if command in FOLDERS else [".", os.devnull]
    for place in bad:
        assert cli.main([*words, place]) == 2, place
        told = capsys.readouterr().err
        assert told.startswith(f"csrlhf: {option} {place}: ") and told.count("\n") == 1, told
        assert "expected" in told
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left behind"


@pytest.mark.parametrize(
    "number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get
)
def test_the_reason_is_told(tmp_path, monkeypatch, number):
    def refused(*names, **options):
        raise OSError(number, os.strerror(number), str(names[0]))

    monkeypatch.setattr(os, "mkdir", refused)
    words = os.strerror(number).lower()
    for check in (check_folder, check_file):
        with pytest.raises(UserError, match=f"--out .*: .*{words}"):
            check(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a /proc")
def test_a_place_where_no_folder_can_be_made():
    with pytest.raises(UserError, match="--out /proc/none/x: "):
        check_folder(Path("/proc/none/x"))


def test_what_can_be_written_is_not_touched(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in (tmp_path / "full", tmp_path / "a" / "b", tmp_path / "ü 1"):
        check_folder(place)
    for place in (tmp_path / "full" / "mine", tmp_path / "a" / "b.json", tmp_path / ("n" * 255)):
        check_file(place)
    for check in (check_folder, check_file):
        with pytest.raises(UserError, match="--out"):
            check(tmp_path / "loop" / "x")
        with pytest.raises(UserError, match="loop: found links in a circle"):
            check(tmp_path / "loop")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "loop", "mine"]


def test_a_disk_that_is_full_during_the_work_is_one_sentence(tmp_path, capsys):
    def wrapped():
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")
        except OSError as error:
            raise ValueError("cannot save") from error

    def words(kind, text):
        def fail():
            raise kind(text)

        return fail

    for fail in (
        wrapped,
        words(
            RuntimeError,
            "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0: file write failed",
        ),
        words(SafetensorError, "Error while serializing: I/O error: No space left on device (os error 28)"),
    ):
        assert cli.run_command(lambda config, fail=fail: fail(), None) == 2
        told = capsys.readouterr().err
        assert told.startswith("csrlhf: the disk is full") and told.count("\n") == 1
    for mistake in (KeyError("a"), RuntimeError("shapes differ"), FileNotFoundError(2, "No such file", "x")):

        def fail(config, mistake=mistake):
            raise mistake

        with pytest.raises(type(mistake)):
            cli.run_command(fail, None)


def test_a_checkpoint_on_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch):
    run = Run.open(tmp_path, {})
    run.save(1, {"x": torch.ones(1)}, {})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            run.save(2, {"x": torch.zeros(1)}, {})
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000001"]


# --- one process at a time ---

HOLD = """
import sys
from pathlib import Path
from csrlhf_kit.outputs import lock
with lock(Path(sys.argv[1]), inside=sys.argv[2] == "inside"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Start processes that lock a folder each; they end with the test."""
    started = []

    def start(folder: Path, *, inside: bool = True) -> subprocess.Popen:
        words = [sys.executable, "-c", HOLD, str(folder), "inside" if inside else "beside"]
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout.readline() == "held\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("inside", [True, False])
def test_a_second_process_is_refused_and_a_dead_one_blocks_nobody(tmp_path, hold, inside):
    out = tmp_path / "deep" / "run"
    child = hold(out, inside=inside)
    words = rf"run is being written by process {child.pid} on \S+: expected one"
    with pytest.raises(UserError, match=words), lock(out, inside=inside):
        pass
    child.kill()
    child.wait()
    with lock(out, inside=inside), lock(out, inside=inside):
        pass  # a notebook's second cell
    child = hold(out, inside=inside)
    child.communicate("")  # ends by itself
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_error_gives_the_folder_free(tmp_path, hold):
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), lock(tmp_path / "run"):
            (tmp_path / "run" / "metrics.jsonl").touch()
            raise error
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]
    hold(tmp_path / "run")


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def unsupported(*names):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with lock(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize(
    "command", ["run", "sft", "cost-model", "reward-model", "ppo", "direct", "sweep", "rounds"]
)
def test_every_command_that_trains_is_alone_in_its_folder(command, tmp_path, monkeypatch, capsys, hold):
    monkeypatch.chdir(tmp_path)
    child = hold(tmp_path / "run", inside=command not in ("sft", "cost-model", "reward-model"))
    assert cli.main([*COMMANDS[command].split(), "run"]) == 2
    assert f"csrlhf: run is being written by process {child.pid}" in capsys.readouterr().err


def test_windows_has_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("csrlhf_kit.outputs.fcntl", None)
    with lock(tmp_path / "run"):
        replace_folder(tmp_path / "run", model("new"))
    assert set(said(tmp_path / "run").values()) == {"new"}
