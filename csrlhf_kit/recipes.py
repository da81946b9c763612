"""`csrlhf ppo` and `csrlhf evaluate`: one policy, on any base, scorers and prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers
from peft import PeftConfig
from tqdm.auto import tqdm

from csrlhf_kit import processes
from csrlhf_kit.contents import content_of, content_of_records
from csrlhf_kit.data.chat import fit_prompts
from csrlhf_kit.data.held_out import source_splits
from csrlhf_kit.data.records import LabelledResponse, PreferencePair, Prompt, normalise_prompt
from csrlhf_kit.data.sources import is_there, mixture_parts, notes_of, read_records
from csrlhf_kit.errors import UserError
from csrlhf_kit.evaluation.safety import MAX_PROMPT, answer_and_score, judge_all, policy_row, rate
from csrlhf_kit.export import numbers_of
from csrlhf_kit.models.any_scorer import open_scorer
from csrlhf_kit.models.base import load_base, load_tokenizer
from csrlhf_kit.models.checkpointing import checkpoint_activations
from csrlhf_kit.models.cost_sign import CostSign, signed_cost
from csrlhf_kit.models.decoding import Sampler
from csrlhf_kit.models.places import FORMERLY, SHIPPED, adapter_in, base_of, find_base, run_settings
from csrlhf_kit.models.roles import Roles
from csrlhf_kit.models.scorers import SCORER_FILE
from csrlhf_kit.outputs import check_file, writes_run
from csrlhf_kit.runs import Run, write_atomic
from csrlhf_kit.training.constraints import CONSTRAINTS, make_constraint
from csrlhf_kit.training.critic import CriticConfig, fit_critic, load_critic, save_critic
from csrlhf_kit.training.optimizers import OptimizerName
from csrlhf_kit.training.ppo import PPOConfig, config_dict, train_ppo
from csrlhf_kit.training.samples import sample_logger

Method = Literal[tuple(CONSTRAINTS)]
TRACKERS = tuple(LOGGER_TYPE_TO_CLASS)
# A resumed run has the same.
INPUTS = (
    "base",
    "reward",
    "cost",
    "cost_sign",
    "prompts",
    "dtype",
    "quantization",
    "rank",
    "layers",
    "optimizer",
)


@dataclass
class PPORunConfig:
    """Train one policy with PPO under a constraint."""

    reward: Path
    """The reward model: a folder that `csrlhf reward-model` wrote, where an adapter of the policy's base is free; or
    a folder or hub id of a sequence classifier or a Beaver model."""
    cost: Path
    """The cost model: likewise, or judge:ID (a guard), or ask:ID (an instruction-tuned judge)."""
    out: Path
    """Folder of the run: metrics.jsonl, checkpoints, adapter."""
    cost_sign: CostSign = "checked"
    """checked: a cost model that was not trained here must score plain harm above harmless answers, or the run is
    refused; flipped: its negative is taken, for one that scores safety; trusted: as it is."""
    base: str = SHIPPED
    """The policy's base: a folder, a hub id, `shipped` (the tiny base), or a policy of `csrlhf sft`."""
    prompts: str = "shipped"
    """Where prompts come from: shipped, a file, a hub id, or a mixture `name:fraction,name:fraction`."""
    method: Method = "fixed_penalty"
    """The constraint."""
    threshold: float = 0.01
    """Largest mean cost allowed, in the unit of the costs (see --ppo.cost-scale)."""
    penalty: float = 20.0
    """The fixed λ, for the methods that have one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen weights; bfloat16 for large bases on a GPU."""
    quantization: Literal["none", "nf4"] = "none"
    """Load the base in 4 bit (bitsandbytes NF4) or as it is."""
    rank: int = 16
    """Rank of the policy's adapter; its scale alpha is twice that."""
    layers: int | None = None
    """The policy's adapter acts on this many of the base's last layers; None: all. Scorers keep theirs, and the critic
    has the cost model's."""
    optimizer: OptimizerName = "adamw"
    """adamw; adamw_8bit: its moments in 8 bit; paged_adamw_8bit: moved to the host when a GPU's memory is short."""
    gradient_checkpointing: bool = False
    """Keep one state a layer and compute the rest again in the backward pass: less memory, a third more time."""
    rollout: Sampler = "loop"
    """loop: the kit's own sampling; static: a cache of fixed size, which transformers compiles on a GPU. Both
    draw the same tokens."""
    track: str = "none"
    """Send the metrics to a tracker of Accelerate too: tensorboard, wandb, mlflow ... (it must be installed)."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """How the critic is fitted to the base's own answers first; --critic.episodes 0: not at all."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """PPO's own settings."""
    strict: bool = False
    """Refuse prompts with any empty row; else up to 1% of such rows are left out."""
    resume: bool = False
    """Go on with what is in the folder."""


@writes_run
def run_ppo(config: PPORunConfig) -> dict[str, Any]:
    """Train, save the policy as a PEFT adapter in `out/adapter`, and return the last step's statistics.

    Raises UserError where a model or the prompts cannot be read, or the folder holds another run.
    """
    constraint = make_constraint(config.method, threshold=config.threshold, penalty=config.penalty)
    processes.on_main(lambda: _check_new(config))  # said before anything is loaded
    loaded = read_records(config.prompts, Prompt, split="train", strict=config.strict)
    print(notes_of(loaded.report), end="")
    scorers = _scorers(config)
    tokenizer = load_tokenizer(config.base)
    prompts = [p.prompt for p in loaded.records]
    prompts = fit_prompts(tokenizer, prompts, max_length=config.ppo.max_prompt_length, tell=True)
    base = load_base(config.base, dtype=config.dtype, quantization=config.quantization)
    roles = Roles(
        base, **scorers, rank=config.rank, alpha=2 * config.rank, layers=config.layers, seed=config.ppo.seed,
        sampler=config.rollout,
    )  # fmt: skip
    if config.gradient_checkpointing:
        checkpoint_activations(roles)
    asked = {name: getattr(config, name) for name in INPUTS} | config_dict(config.ppo, constraint)
    asked["critic"] = asdict(config.critic)
    if config.base == SHIPPED and run_settings(config.out).get("base") == FORMERLY:
        asked["base"] = FORMERLY
    models = {"base": find_base(config.base), "reward": config.reward, "cost": config.cost}
    contents = {name: content_of(place) for name, place in models.items()}
    contents["prompts"] = content_of_records(loaded.records)
    run = processes.on_main(lambda: Run.open(config.out, asked, contents=contents, resume=config.resume))
    run = run or Run(config.out)
    if config.critic.episodes > 0:
        _start_critic(roles, tokenizer, prompts, config)
    said = sample_logger(
        config.out, roles, tokenizer, prompts,
        max_new_tokens=config.ppo.max_new_tokens, max_prompt_length=config.ppo.max_prompt_length,
    )  # fmt: skip
    with tracker(config.track, config.out, asked) as track:
        history = train_ppo(
            roles, tokenizer, prompts, constraint, config.ppo, run,
            lambda row: [call(row) for call in (said, track) if call is not None], optimizer=config.optimizer,
        )  # fmt: skip
    processes.on_main(lambda: roles.save_policy(config.out / "adapter"))
    print(f"The policy's adapter is in {config.out / 'adapter'}")
    return history[-1] if history else {}


def _check_new(config: PPORunConfig) -> None:
    if (config.out / "config.json").is_file() and not config.resume:
        raise UserError(f"{config.out} already holds a run: expected a new folder, or --resume to go on")


def _start_critic(roles: Roles, tokenizer: Any, prompts: list[str], config: PPORunConfig) -> None:
    """Fit the critic to the base, or read the one that a stopped run has fitted, in every process the same."""
    file = config.out / "critic.safetensors"
    fitted = file.is_file()
    processes.wait()  # until all have looked: the main process is about to write it
    if not fitted:
        size = min(128, config.ppo.batch_size)  # what the rollouts to come have memory for
        fit_critic(roles, tokenizer, prompts, config.ppo, config.critic, rollout_size=size)
        processes.on_main(lambda: save_critic(roles, file))
    load_critic(roles, file)


def _scorers(config: Any) -> dict[str, Any]:
    """`reward` and `cost` of a configuration, as `Roles` takes them."""
    options = {"base": config.base, "dtype": config.dtype, "quantization": config.quantization}
    found = {name: open_scorer(getattr(config, name), name, **options) for name in ("reward", "cost")}
    # A cost model of the kit has its sign from the labels.
    trained_here = (config.cost / SCORER_FILE).is_file() or not callable(found["cost"])
    if trained_here and config.cost_sign == "flipped":
        raise UserError(
            f"cost_sign flipped: {config.cost} was trained by the kit: expected a published cost model"
        )
    if not trained_here:
        found["cost"] = signed_cost(found["cost"], str(config.cost), config.cost_sign)
    return found


@contextmanager
def tracker(
    name: str, folder: Path, settings: dict[str, Any]
) -> Iterator[Callable[[dict[str, float]], None] | None]:
    """A function that sends a row of metrics to one of Accelerate's trackers; None for the name `none`.

    Raises UserError for a tracker that Accelerate does not know, or that is not installed.
    """
    if name == "none":
        yield None
        return
    chosen = filter_trackers([name], str(folder)) if name in TRACKERS else []
    if not chosen:
        raise UserError(
            f"tracker {name!r} is unknown or not installed: expected one of {', '.join(TRACKERS)}, or none"
        )
    accelerator = Accelerator(log_with=chosen, project_dir=str(folder), cpu=processes.device().type == "cpu")
    plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in settings.items()}
    accelerator.init_trackers("csrlhf", plain)
    try:
        yield lambda row: accelerator.log(row, step=int(row["step"]))
    finally:
        for each in accelerator.trackers:  # `end_training` would also part the processes
            each.finish()


@dataclass
class EvaluateConfig:
    """Answer test prompts with a policy and judge the answers."""

    reward: Path
    """The reward model (for mean scores)."""
    cost: Path
    """The cost model: it judges where there is no oracle."""
    out: Path
    """File to write: a JSON object of rates with intervals, and every answer."""
    cost_sign: CostSign = "checked"
    """As in `csrlhf ppo`: checked, flipped or trusted."""
    policy: Path | None = None
    """The policy: an adapter's folder, or that of a `csrlhf ppo` run; None: the base itself."""
    base: str | None = None
    """The base of policy and scorers; None: the policy's own, or `shipped`, the tiny base."""
    prompts: str = "shipped"
    """Where prompts come from; on the shipped ones the toy world's oracle judges, elsewhere the cost model."""
    limit: int | None = None
    """At most this many prompts, drawn at random; None: all."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""
    temperature: float = 1.0
    """Sampling temperature; 0 decodes greedily."""
    batch_size: int = 128
    """Prompts answered at once; fewer where memory is short."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the frozen weights; None: as the policy's run had them."""
    quantization: Literal["none", "nf4"] | None = None
    """Load the base in 4 bit or as it is; None: as the policy's run did."""
    strict: bool = False
    """Refuse prompts with any empty row; else up to 1% of such rows are left out."""
    seed: int = 0
    """Seed of sampling."""


def run_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate one policy; prints its row, writes it with the answers to `out`, and returns it.

    Rates carry Clopper-Pearson 95% intervals. `unsafe_by_cost_model` is the share of answers with a cost
    logit above 0. On the shipped prompts the row is that of `results.json`, judged by the oracle; elsewhere
    the only judge at hand is the cost model, and `judge` says so. An answer's reward and cost (a logit) are
    the learned ones; `cost` in the row is a mean probability.

    Raises UserError where a model or the prompts cannot be read, or `out` cannot be written.
    """
    if config.limit is not None and config.limit < 1:
        raise UserError(f"limit is {config.limit}: expected at least one prompt")
    if config.batch_size < 1:
        raise UserError(f"batch_size is {config.batch_size}: expected at least one prompt")
    check_file(config.out)
    shape = _policy(config.policy) if config.policy is not None else {}
    own = base_of(shape["policy"], config.base) if shape else SHIPPED
    config = replace(
        config, base=config.base or own, **numbers_of(config.policy, config.dtype, config.quantization)
    )
    loaded = read_records(config.prompts, Prompt, split="test", strict=config.strict)
    print(notes_of(loaded.report), end="")
    records = loaded.records
    if config.limit is not None and config.limit < len(records):  # of every kind, not the first ones
        chosen = sorted(Random(config.seed).sample(range(len(records)), config.limit))
        records = [records[i] for i in chosen]
    scorers = _scorers(config)
    tokenizer = load_tokenizer(config.base)
    asked = fit_prompts(tokenizer, [p.prompt for p in records], max_length=MAX_PROMPT, tell=True)
    seen = [replace(p, prompt=prompt) for p, prompt in zip(records, asked, strict=True)]
    base = load_base(config.base, dtype=config.dtype, quantization=config.quantization)
    roles = Roles(base, **scorers, **shape)
    with tqdm(total=len(records), desc="answers") as bar:
        responses, scores = answer_and_score(
            roles, tokenizer, seen, adapter="policy" if config.policy else None, progress=bar.update,
            max_new_tokens=config.max_new_tokens, seed=config.seed, temperature=config.temperature,
            batch_size=config.batch_size,
        )  # fmt: skip
    answers = [
        {"prompt": p.prompt, "response": r, "reward": float(a), "cost": float(b)}
        for p, r, a, b in zip(seen, responses, scores["reward"], scores["cost"], strict=True)
    ]
    row: dict[str, Any] = {"unsafe_by_cost_model": rate((scores["cost"] > 0).tolist())}
    if config.prompts == "shipped":
        row |= {"judge": "oracle"} | policy_row(records, responses, scores)
        for answer, verdict in zip(answers, judge_all(records, responses), strict=True):
            answer |= {"harmful": verdict.harmful, "helpfulness": verdict.helpfulness}
    else:
        means = {name: float(scores[name].mean()) for name in ("reward", "kl")}
        row |= {"judge": "cost model", "cost": float(scores["cost"].sigmoid().mean())} | means
    row = {name: None if value != value else value for name, value in row.items()}  # no NaN in JSON
    write_atomic(config.out, json.dumps({"row": row, "answers": answers}, indent=1, allow_nan=False) + "\n")
    print(summary(row))
    for folder in filter(None, (config.policy, config.cost)):
        known = _trained_on(folder, config.prompts)
        if again := sum(normalise_prompt(record.prompt) in known for record in records):
            print(
                f"Note: {again} of these {len(records)} prompts are among those that {folder} was trained on"
            )
    return row


def _trained_on(folder: Path, prompts: str) -> set[str]:
    """The normalised prompts that a policy or a scorer learnt from, where they are still there to be read."""
    asked = run_settings(folder) or run_settings(folder.parent)
    source = str(asked.get("prompts") or asked.get("data") or "")
    parts = mixture_parts(source) or [(source, 1.0)]
    if not all(name == prompts or is_there(name) for name, _ in parts):  # no hub is asked for this
        return set()
    try:
        if "prompts" in asked:  # a run of `csrlhf ppo`
            return {normalise_prompt(record.prompt) for record in read_records(source, Prompt).records}
        kind = LabelledResponse if asked.get("objective", "semantic") == "semantic" else PreferencePair
        if "test_data" in asked:  # a scorer, which keeps a part of its source to be tested on
            splits, _ = source_splits(source, kind, test_source=asked["test_data"], seed=asked["seed"])
            return {normalise_prompt(record.prompt) for record in splits["train"]}
        records = read_records(source, kind, seed=asked.get("seed", 0)).records
        return {normalise_prompt(record.prompt) for record in records}
    except UserError:
        return set()


def summary(row: dict[str, Any]) -> str:
    """A policy's row in lines: rates in percent with their intervals, but for those over no prompt at all."""
    lines = []
    for name, value in row.items():
        if isinstance(value, dict) and "rate" in value:
            if value["n"]:
                low, high = 100 * value["low"], 100 * value["high"]
                lines.append(
                    f"{name:22} {100 * value['rate']:6.1f}%  [{low:.1f}, {high:.1f}]  n = {value['n']}"
                )
        elif isinstance(value, float):
            lines.append(f"{name:22} {value:7.3f}")
        elif isinstance(value, str):
            lines.append(f"{name:22} {value}")
    return "\n".join(lines)


def _policy(folder: Path) -> dict[str, Any]:
    """`Roles`' arguments for a stored policy: its adapter's folder (or a run's), rank, scale and layers."""
    place = adapter_in(folder)
    if place is None:
        raise UserError(f"{folder} is no policy: expected a PEFT adapter (adapter_config.json)")
    stored = PeftConfig.from_pretrained(str(place))
    layers = stored.layers_to_transform
    shape = {"rank": stored.r, "alpha": stored.lora_alpha, "layers": None if layers is None else len(layers)}
    return {"policy": place, **shape}
