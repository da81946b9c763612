"""The doctor: a sentence for each thing that is there, or is not, and the exit status that follows."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from csrlhf_kit.cli import main
from csrlhf_kit.data.sources import data_folder
from csrlhf_kit.recipes import doctor


def marks(found) -> list[str]:
    return [mark for mark, _ in found]


def test_a_machine_that_can_do_it_is_usable(tmp_path, capsys):
    assert main(["doctor", "--out", str(tmp_path / "not" / "yet")]) == 0
    said = capsys.readouterr()
    assert not said.err and "missing" not in said.out and "Usable." in said.out
    for words in (
        sys.version.split()[0],
        torch.__version__,
        "Processor: ",
        "bitsandbytes",
        "Memory: ",
        "Disk: ",
    ):
        assert words in said.out
    assert str(data_folder() / "world") in said.out and str(data_folder() / "tiny_base") in said.out
    assert not (tmp_path / "not").exists()


def test_no_data_and_no_base_are_told_with_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CSRLHF_DATA", str(tmp_path))
    assert main(["doctor", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "mend the 2 marked missing" in said.err
    for words in ("CSRLHF_DATA", "csrlhf make-data", "csrlhf make-base", "note    Recorded run: none"):
        assert words in said.out


def test_a_data_file_that_was_cut_off_is_named(tmp_path, monkeypatch):
    for name in ("world", "tiny_base", "recorded"):
        shutil.copytree(data_folder() / name, tmp_path / name)
    monkeypatch.setenv("CSRLHF_DATA", str(tmp_path))
    assert marks(doctor.shipped()) == ["ok", "ok"]
    file = tmp_path / "world" / "labels_test.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    (tmp_path / "world" / "prompts_test.jsonl").unlink()
    (tmp_path / "tiny_base" / "model.safetensors").unlink()
    (world, why), (base, lacks) = doctor.shipped()
    assert world == base == "missing" and "model.safetensors" in lacks
    assert "prompts_test.jsonl, labels_test.jsonl" in why and "labels_train" not in why


def test_libraries_that_are_absent_or_too_old_are_named(monkeypatch):
    wanted = ["numpy>=1", "abacus-of-nobody>=2", "torch>=99", "ruff>=99; extra == 'test'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: wanted)
    python, (mark, told) = doctor.libraries()
    assert python[0] == "ok" and mark == "missing" and "pip install" in told
    assert "abacus-of-nobody>=2 (found none)" in told and f"torch>=99 (found {torch.__version__})" in told
    assert "numpy" not in told and "ruff" not in told

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", absent)
    assert marks(doctor.libraries()) == ["ok", "note"]


def test_a_pytorch_that_does_not_load_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    [(mark, told)] = doctor.pytorch()
    assert mark == "missing" and "PyTorch does not load" in told and "\n" not in told


def test_more_threads_than_cores_are_noted(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    mark, told = next(iter(doctor.pytorch()))
    assert mark == "note" and "OMP_NUM_THREADS=" in told


@pytest.mark.parametrize(("known", "words"), [
    ({"cpu_name": "A", "avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, "has AVX2, AVX512, AVX512-BF16; lacks AMX-BF16;"),
    ({"cpu_name": "B", "avx2": False}, "has none of the wide instructions that were looked for; lacks AVX2,"),
    ({}, "none of the wide instructions"),
])  # fmt: skip
def test_the_processor_is_described(known, words):
    cpu = SimpleNamespace(get_cpu_capability=lambda: "X")
    found = doctor.processor(SimpleNamespace(cpu=SimpleNamespace(get_capabilities=lambda: known), backends=SimpleNamespace(cpu=cpu)))  # fmt: skip
    assert words in found and "PyTorch uses X" in found
    old = doctor.processor(SimpleNamespace(cpu=SimpleNamespace(), backends=SimpleNamespace(cpu=cpu)))
    assert old.startswith("Processor: ") and "lacks" not in old


def test_bitsandbytes_is_noted_where_it_is_absent_or_has_no_library_for_cpus(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    [(mark, told)] = doctor.bitsandbytes()
    assert mark == "note" and "nf4" in told
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: spec)
    assert "GPU only" in next(iter(doctor.bitsandbytes()))[1]


def test_too_little_memory_or_disk_and_a_folder_that_is_not_mine_are_told(tmp_path, monkeypatch):
    small = SimpleNamespace(available=2**28, total=2**30)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: small)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    (memory, close), (disk, full) = doctor.room(tmp_path / "new")
    assert (memory, disk) == ("note", "missing") and "--workers 1" in close and "0.00 GiB free" in full
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written to" in list(doctor.room(tmp_path))[1][1]
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in list(doctor.room(tmp_path / "file" / "x"))[1][1]
