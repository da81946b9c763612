"""Where a base is, and whether its weights are those that an adapter was trained on.

A base is given as a folder, a hub id, `shipped`, the tiny base beside the toy world, or `pip:NAME`, which packaged.py
prepares. The folder of a policy's adapter, or of its run, stands for the policy: its base with the adapter merged in.
Folders move, and several may have the same name, so `base.json` beside an adapter holds a fingerprint of its base's
weights and a relative path. Builds on packaged.py, and on contents.py and outputs.py of the hall.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from csrlhf_kit.contents import cached_folder, content_of
from csrlhf_kit.data.sources import data_folder, may_be_on_hub
from csrlhf_kit.errors import UserError
from csrlhf_kit.files import read_json, write_atomic
from csrlhf_kit.models.packaged import PIP, prepared_base
from csrlhf_kit.outputs import NEW

SHIPPED = "shipped"
FORMERLY = "data/tiny_base"  # the shipped base in runs of earlier versions
ADAPTER_FILE, BASE_FILE = "adapter_config.json", "base.json"


def find_base(name: str | Path) -> str:
    """The folder or hub id that `name` stands for.

    Raises UserError for a path that does not exist, for a packaged base that cannot be prepared, and for a hub id
    that is not cached if the hub is out of reach.
    """
    name = str(name)
    if name == SHIPPED or (name == FORMERLY and not os.path.isdir(name)):
        folder = data_folder() / "tiny_base"
        if not (folder / "config.json").is_file():
            raise UserError(
                f"no base model in {folder}: expected the tiny base there; set CSRLHF_DATA to the folder `data` of "
                "the kit's repository, give --base, or run csrlhf make-base"
            )
        return str(folder)
    if name.startswith(PIP):
        return prepared_base(name)
    local = os.path.expanduser(name)
    if os.path.isdir(local):
        return local
    if cached_folder(name):
        return name
    if name.count("/") != 1 or "@" in name or not may_be_on_hub(name):
        raise UserError(
            f"{name} is not a folder: expected a model saved by `save_pretrained`, or a hub id owner/name"
        )
    if not constants.HF_HUB_OFFLINE:
        try:  # a single request, since `from_pretrained` would retry for half a minute
            HfApi().model_info(name, timeout=10)
        except HfHubHTTPError:
            pass  # the hub answers, so `from_pretrained` will say whether it is gated or unknown
        except Exception as error:
            raise UserError(
                f"could not load {name}: the hub cannot be reached and the cache does not hold it; connect, or give "
                "a folder"
            ) from error
    return name


def adapter_in(folder: str | Path) -> Path | None:
    """The folder of a PEFT adapter: `folder` itself, or `adapter` in it as in a run; None if there is none."""
    for place in (Path(folder), Path(folder) / "adapter"):
        if (place / ADAPTER_FILE).is_file() and not any(Path(folder).glob("model*.safetensors")):
            return place
    return None


def whole_model(name: str | Path) -> str:
    """The folder or hub id of the whole model below all adapters of `name`."""
    name = find_base(name)
    while adapter := adapter_in(name):
        name = base_of(adapter)
    return name


def base_of(adapter: Path, given: str | Path | None = None) -> str:
    """The base of an adapter: `given`, or the first of these that exists and has the weights it was trained on.

    The folder that the adapter names; the relative path in `base.json`; the base in its run's settings, relative to
    the working directory or to a folder above the run; a folder above it with the base's name; a hub id.

    Raises UserError if none exists, or its weights differ.
    """
    if given is not None:
        check_base(adapter, given)
        return find_base(given)
    here, noted = adapter.resolve(), _noted(adapter)
    told = read_json(adapter / ADAPTER_FILE) if (adapter / ADAPTER_FILE).is_file() else {}  # a probe has none
    named = str(told.get("base_model_name_or_path") or noted.get("base") or "")
    asked = str(run_settings(adapter).get("base") or named)
    if not (named or asked):
        raise UserError(f"{adapter} does not say what its base is: expected --base")
    places = [Path(named)] if os.path.isabs(named) else []
    places += [here / noted["path"]] if "path" in noted else []
    for name in dict.fromkeys((asked, named)):
        places += (
            [] if os.path.isabs(name) or name == SHIPPED else [Path(name), *(p / name for p in here.parents)]
        )
    if noted and os.path.isabs(named):
        places += [p / Path(named).name for p in here.parents]
    there = [p for p in places if p.resolve() != here and (adapter_in(p) or (p / "config.json").is_file())]
    for place in there:
        if fits_base(adapter, place) is not False:
            return str(place)
    by_name = asked in (SHIPPED, FORMERLY) or asked.startswith(PIP)
    last = asked if by_name else named or asked
    if there and not by_name:
        raise UserError(_other(adapter, there[0]))
    try:
        base = find_base(last)
    except UserError as error:
        raise UserError(f"the base of {adapter}: {error}; --base says where it is") from error
    check_base(adapter, base)
    return base


# --- the same weights? ----------------------------------------------------------------------------------


def note_base(folder: str | Path, base: str) -> None:
    """Note the base of an adapter or a probe: its absolute path in the adapter's config, else in `base.json`, which
    also holds its relative path and its fingerprint.
    """
    folder, adapter = Path(folder), (Path(folder) / ADAPTER_FILE).is_file()
    if not base or not (adapter or (folder / "probe.safetensors").is_file()):
        return
    noted = {"fingerprint": fingerprint(base)}
    if not adapter:
        noted["base"] = str(Path(base).resolve()) if os.path.isdir(base) else base
    if os.path.isdir(base):
        if adapter:
            config = read_json(folder / ADAPTER_FILE) | {"base_model_name_or_path": str(Path(base).resolve())}
            write_atomic(folder / ADAPTER_FILE, json.dumps(config, indent=2, sort_keys=True))
        home = folder.parent if folder.name == NEW else folder  # written in the folder that it replaces
        noted["path"] = os.path.relpath(Path(base).resolve(), home.resolve())
    write_atomic(folder / BASE_FILE, json.dumps(noted, indent=1) + "\n")


def fits_base(adapter: Path, base: str | Path) -> bool | None:
    """Whether `base` has the weights that an adapter was trained on; None if a fingerprint is missing."""
    noted = _noted(adapter).get("fingerprint")
    own = fingerprint(find_base(base)) if noted and str(base) else None
    return noted == own if noted and own else None


def check_base(adapter: Path, base: str | Path) -> None:
    """Raise UserError if an adapter was trained on weights other than those of `base`."""
    if fits_base(adapter, base) is False:
        raise UserError(_other(adapter, base))


def _other(adapter: Path, base: str | Path) -> str:
    return (
        f"{adapter} was trained on another base than {base}, whose weights differ: expected its own (--base)"
    )


def fingerprint(base: str | Path) -> str | None:
    """A fingerprint of the weights in a folder or of a cached hub id; for an adapter, of its base, tensors and scale
    together. None if there are no weights in safetensors.
    """
    folder = Path(base) if os.path.isdir(base) else cached_folder(str(base))
    if folder is None:
        return None
    if adapter := adapter_in(folder):
        config = read_json(adapter / ADAPTER_FILE)
        scale = [
            config.get(name) for name in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
        ]
        own = content_of(adapter, ("adapter_model.safetensors",))
        told = json.dumps([fingerprint(base_of(adapter)), scale, own], sort_keys=True)
        return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    files = "model*.safetensors"
    return content_of(folder, (files,)) if any(folder.glob(files)) else None


# --- files beside a model -------------------------------------------------------------------------------


def run_settings(run: Path) -> dict[str, Any]:
    """The settings of a run: `config.json` of `csrlhf ppo`, or `config` in `sft.json` and `scorer.json`. For the
    `adapter` folder in a run, and with those of `csrlhf run` for one of its policies. Empty if there are none.
    """
    run = run.resolve()
    run = run.parent if run.name == "adapter" else run
    shared = run_settings(run.parent.parent) if run.parent.name == "policies" else {}
    for name, part in (("config.json", None), ("sft.json", "config"), ("scorer.json", "config")):
        if (run / name).is_file():
            stored: Any = read_json(run / name)
            stored = stored if part is None else stored.get(part)
            return shared | (stored if isinstance(stored, dict) else {})
    return shared


def _noted(adapter: Path) -> dict[str, str]:
    noted = read_json(adapter / BASE_FILE) if (adapter / BASE_FILE).is_file() else {}
    return {name: value for name, value in noted.items() if isinstance(value, str)}


def adapter_folder(run: Path) -> Path:
    """The folder of the PEFT adapter in `run`. Raises UserError if there is none."""
    if place := adapter_in(run):
        return place
    if (run / "probe.safetensors").is_file():
        raise UserError(
            f"{run} is a probe: expected an adapter, since nothing but the kit reads a probe's states"
        )
    if (run / "sft.json").is_file() or (run / "scorer.json").is_file():
        raise UserError(
            f"{run} was trained with --adaptation full: it holds a whole model already, and no adapter"
        )
    raise UserError(f"{run} holds no adapter: expected a run of `csrlhf sft`, a scorer or `ppo`")


def numbers_of(run: Path | None, dtype: str | None, quantization: str | None) -> dict[str, Any]:
    """`dtype` and `quantization` for loading a run's base: those given, else those in the run's settings."""
    stored = run_settings(run) if run is not None else {}
    return {
        "dtype": dtype or stored.get("dtype", "float32"),
        "quantization": quantization or stored.get("quantization", "none"),
    }
