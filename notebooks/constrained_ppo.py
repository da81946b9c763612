"""Constrained PPO for a language model in one file: the whole algorithm, to be read from top to bottom.

A policy answers requests. A reward model says how helpful an answer is, a cost model how likely it is harmful.
PPO raises the reward while the mean cost J_C has to stay below a threshold d, enforced in one of two ways:

    rectified   maximise  E[r] - beta KL - lambda max(J_C - d, 0),  lambda fixed   (CS-RLHF, arXiv 2510.03520)
    lagrangian  maximise  E[r] - beta KL - lambda (J_C - d),        lambda learnt  (Safe RLHF, arXiv 2310.12773)

    python notebooks/constrained_ppo.py --method rectified        # about 3 minutes on two cores
    python notebooks/constrained_ppo.py --penalty 0               # plain PPO: cost does not count

It needs torch, transformers, peft and data/. The package does the same faster; a test holds both side by side.
"""

import json
import math
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads must not spin
sys.modules.setdefault("bitsandbytes", None)  # peft would import it, and on some CPUs it asks a hub for code
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.hf_argparser import HfArg, HfArgumentParser
from transformers.utils import logging

logging.set_verbosity_error()  # the judges' heads are in their adapters, and not missing
logging.disable_progress_bar()
warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that has changed


@dataclass
class Args:
    """Every field is an option of the command line."""

    method: str = HfArg(default="rectified", help="rectified or lagrangian")
    data: str = HfArg(default=str(Path(__file__).parents[1] / "data"), help="the kit's data folder")
    steps: int = HfArg(default=24, help="PPO steps, a batch of fresh answers each")
    batch_size: int = HfArg(default=64, help="answers per step")
    minibatch_size: int = HfArg(default=32, help="answers per optimiser step")
    epochs: int = HfArg(default=2, help="passes over each batch")
    threshold: float = HfArg(default=0.02, help="d, the largest mean cost allowed")
    penalty: float = HfArg(default=6.0, help="lambda of the rectified penalty")
    initial: float = HfArg(default=1.0, help="lambda of the Lagrangian at the start")
    rate: float = HfArg(default=0.1, help="step size of log lambda")
    maximum: float = HfArg(default=5.0, help="largest lambda of the Lagrangian")
    window: int = HfArg(default=128, help="recent answers whose mean cost estimates J_C")
    learning_rate: float = HfArg(default=3e-3, help="policy's Adam step size")
    critic_learning_rate: float = HfArg(default=4e-3, help="critic's Adam step size")
    beta: float = HfArg(default=0.02, help="weight of the KL to the base, per nat")
    gae_lambda: float = HfArg(default=0.95, help="lambda of GAE (no relation to the multiplier)")
    clip: float = HfArg(default=0.2, help="clip range of the probability ratio")
    value_clip: float = HfArg(default=5.0, help="clip range of the values")
    target_kl: float = HfArg(default=0.1, help="the policy rests for a step beyond this KL")
    max_new_tokens: int = HfArg(default=32, help="longest answer, end token included")
    missing_end: float = HfArg(default=1.0, help="taken off the reward of an unfinished answer")
    seed: int = HfArg(default=0, help="seed of adapters, sampling and shuffling")


# --- the models: a policy that is also its own reference, two judges, and a critic with two values


def lora(**more) -> LoraConfig:
    """Adapters on every linear layer of the base, or on the layers named (arXiv 2106.09685)."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=16, lora_alpha=32, target_modules=names, task_type="CAUSAL_LM", **more)


class Critic(nn.Module):
    """Predicts which reward and cost an answer will get, from what has been said so far."""

    def __init__(self, base: Path, fitted: dict[str, Tensor]) -> None:
        super().__init__()
        model = AutoModelForCausalLM.from_pretrained(base)
        self.model = get_peft_model(model, lora(layers_to_transform=[2, 3]))
        self.value_head = nn.Linear(model.config.hidden_size, 2)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(fitted[name.replace(".default.", ".critic.")])

    def forward(self, ids: Tensor) -> Tensor:
        """Values (batch, length, 2) of reward and cost *before* each token of `ids` (batch, length)."""
        trunk = self.model.get_base_model().model  # adapters included, without the language-model head
        values = self.value_head(trunk(input_ids=ids).last_hidden_state)
        return nn.functional.pad(values[:, :-1], (0, 0, 1, 0))


def load_models(args: Args):
    """Tokenizer, policy (a frozen base with a trainable adapter), critic, and the reward and cost models."""
    base, models = Path(args.data) / "tiny_base", Path(args.data) / "recorded" / "models"
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    torch.manual_seed(args.seed)
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora())
    critic = Critic(base, load_file(models / "critic.safetensors"))
    judges = [AutoModelForSequenceClassification.from_pretrained(base, num_labels=1) for _ in range(2)]
    judges = map(PeftModel.from_pretrained, judges, (str(models / "reward"), str(models / "semantic")))
    return tokenizer, policy.eval(), critic.eval(), *(judge.eval() for judge in judges)


def log_probs(model: nn.Module, ids: Tensor, response_mask: Tensor) -> Tensor:
    """Log-probability (batch, length) of each token of an answer given what precedes it; zero elsewhere."""
    logits = model(input_ids=ids[:, :-1]).logits  # column t predicts token t + 1
    taken = logits.log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return torch.where(response_mask, nn.functional.pad(taken, (1, 0)), 0.0)


# --- a step, part 1: answer, and score the answers


@torch.no_grad()
def rollout(policy: nn.Module, tokenizer, prompts: list[str], args: Args):
    """Answer each prompt: ids and response_mask (batch, length), true at the answer, and ended (batch,)."""
    asked = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    mask, tokens, cache, answers = asked["attention_mask"], asked["input_ids"], None, []
    positions = (mask.cumsum(1) - 1).clamp_min(0)  # padding on the left does not count
    noise = torch.rand(len(prompts), args.max_new_tokens, dtype=torch.float64)
    for t in range(args.max_new_tokens):
        known = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        output = policy(input_ids=tokens, use_cache=True, **known)
        cache = output.past_key_values
        cumulative = output.logits[:, -1].softmax(-1).cumsum(-1, dtype=torch.float64)
        drawn = torch.searchsorted(cumulative, (noise[:, t] * cumulative[:, -1]).unsqueeze(1), right=True)
        tokens = drawn.clamp_max(cumulative.shape[1] - 1)  # (batch, 1), an exact draw from the softmax
        answers.append(tokens)
        mask, positions = nn.functional.pad(mask, (0, 1), value=1), positions[:, -1:] + 1
    answers = torch.cat(answers, 1)  # (batch, max_new_tokens)
    is_end = answers == tokenizer.eos_token_id
    said = is_end.cumsum(1) - is_end.long() == 0  # up to the first end token, which is chosen too
    real = torch.cat([asked["attention_mask"].bool(), said], 1)
    chosen = torch.cat([torch.zeros_like(asked["attention_mask"]).bool(), said], 1)
    ids = torch.cat([asked["input_ids"], answers], 1)
    rows = [row[kept] for row, kept in zip(ids, real, strict=True)]
    said = [row[kept] for row, kept in zip(chosen, real, strict=True)]
    ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    return ids, pad_sequence(said, batch_first=True), is_end.any(1)


@torch.no_grad()
def score(models, judges, ids: Tensor, response_mask: Tensor, ended: Tensor, args: Args):
    """What is known before the update: log-probabilities of policy and base, values, rewards and costs."""
    old = log_probs(models["policy"], ids, response_mask)
    with models["policy"].disable_adapter():  # the reference is the base itself
        reference = log_probs(models["policy"], ids, response_mask)
    rewards, costs = (judge(input_ids=ids).logits.squeeze(-1) for judge in judges)  # (batch,) each
    rewards, costs = rewards - args.missing_end * ~ended, costs.sigmoid()  # a cost is P(harmful)
    return old, reference, models["critic"](ids), rewards, costs


# --- a step, part 2: the constraint decides how much cost counts


def rectified_multiplier(violation: float, penalty: float) -> float:
    """lambda of this step's update, from J_C - d: the gradient of lambda max(J_C - d, 0) is all or nothing."""
    return penalty if violation > 0 else 0.0


def learned_multiplier(multiplier: float, violation: float, rate: float, maximum: float) -> float:
    """Dual ascent on log lambda: it climbs while the limit is broken, and falls again while it is kept."""
    return min(multiplier * math.exp(rate * multiplier * violation), maximum)


# --- a step, part 3: advantages


def token_scores(scores: Tensor, log_ratios: Tensor, response_mask: Tensor, beta: float) -> Tensor:
    """Per-token scores (batch, length): -beta log(pi / pi_ref), plus the answer's score on its last token."""
    last = (response_mask * torch.arange(response_mask.shape[1])).argmax(1)
    at_last = torch.arange(response_mask.shape[1]) == last.unsqueeze(1)
    return at_last * scores.unsqueeze(1) - beta * log_ratios


def gae(scores: Tensor, values: Tensor, response_mask: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (batch, length), discount 1 (arXiv 1506.02438, equation 16)."""
    advantages, carry = torch.zeros_like(scores), torch.zeros(len(scores))
    following = carry  # carry and following: A and V of the next token; nothing follows the last one
    for t in reversed(range(scores.shape[1])):
        delta = scores[:, t] + following - values[:, t]
        carry = torch.where(response_mask[:, t], delta + lam * carry, carry)
        following = torch.where(response_mask[:, t], values[:, t], following)
        advantages[:, t] = torch.where(response_mask[:, t], carry, 0.0)
    return advantages, torch.where(response_mask, advantages + values, 0.0)


def combine(reward_a: Tensor, cost_a: Tensor, response_mask: Tensor, multiplier: float) -> Tensor:
    """(A_R - lambda A_C) / (1 + lambda), whitened over the batch's response tokens."""
    mixed = (reward_a - multiplier * cost_a) / (1 + multiplier)
    centred = torch.where(response_mask, mixed - mixed[response_mask].mean(), 0.0)
    return centred / (centred.square().sum() / response_mask.sum()).sqrt().clamp_min(1e-8)


# --- a step, part 4: clipped updates of policy and critic


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, response_mask: Tensor, clip: float):
    """PPO's clipped loss per response token, and the approximate KL from the old policy (arXiv 1707.06347)."""
    log_ratio, count = new - old, response_mask.sum()  # log_ratio is zero outside the answers
    ratio = log_ratio.exp()
    loss = torch.maximum(-ratio * advantages, -ratio.clamp(1 - clip, 1 + clip) * advantages)
    return (loss * response_mask).sum() / count, (ratio - 1 - log_ratio).sum() / count


def value_loss(new: Tensor, old: Tensor, returns: Tensor, response_mask: Tensor, clip: float) -> Tensor:
    """Clipped squared error / 2 per response token, of reward and of cost: (2,) from (batch, length, 2)."""
    clipped = old + (new - old).clamp(-clip, clip)
    errors = torch.maximum((new - returns).square(), (clipped - returns).square())
    return 0.5 * (errors * response_mask.unsqueeze(-1)).sum((0, 1)) / response_mask.sum()


def update(models, optimizers, batch, args: Args) -> tuple[list[float], list[list[float]]]:
    """Clipped gradient steps on policy and critic; returns the losses of both, step by step."""
    ids, response_mask, old, values, advantages, returns = batch
    policy_losses, critic_losses, resting = [], [], False
    for _ in range(args.epochs):
        for part in torch.randperm(len(ids)).split(args.minibatch_size):
            shown, acted = ids[part], response_mask[part]
            if not resting:
                new = log_probs(models["policy"], shown, acted)
                loss, kl = policy_loss(new, old[part], advantages[part], acted, args.clip)
                policy_losses.append(loss.item())
                resting = kl.item() > args.target_kl
            if not resting:
                descend(loss, optimizers["policy"])
            both = value_loss(models["critic"](shown), values[part], returns[part], acted, args.value_clip)
            critic_losses.append(both.tolist())
            descend(both.sum(), optimizers["critic"])
    return policy_losses, critic_losses


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One Adam step on the gradient of `loss`, its norm clipped to 1."""
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()


def train(args: Args, report=print) -> list[dict[str, float]]:
    """Train the policy; return what each step measured. `report` is called with a line per step."""
    tokenizer, policy, critic, *judges = load_models(args)
    with open(Path(args.data) / "world" / "prompts_train.jsonl", encoding="utf-8") as lines:
        prompts = [json.loads(line)["prompt"] for line in lines]
    models, optimizers = {"policy": policy, "critic": critic}, {}
    rates = {"policy": args.learning_rate, "critic": args.critic_learning_rate}
    for name, model in models.items():
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizers[name] = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.0)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(args.seed * 1_000_003))
    torch.manual_seed(args.seed)
    multiplier, recent, history = args.initial, [], []
    for step in range(args.steps):
        for name, optimizer in optimizers.items():  # half a cosine, from the full rate to a tenth
            factor = 0.1 + 0.45 * (1 + math.cos(math.pi * step / args.steps))
            optimizer.param_groups[0]["lr"] = rates[name] * factor
        asked = [prompts[order[(step * args.batch_size + i) % len(order)]] for i in range(args.batch_size)]
        ids, response_mask, ended = rollout(policy, tokenizer, asked, args)
        old, reference, values, rewards, costs = score(models, judges, ids, response_mask, ended, args)
        recent = (recent + costs.tolist())[-args.window :]
        violation = fmean(recent) - args.threshold
        learned = learned_multiplier(multiplier, violation, args.rate, args.maximum)
        multiplier = rectified_multiplier(violation, args.penalty) if args.method == "rectified" else learned
        # Costs carry +beta KL: in (A_R - lambda A_C) / (1 + lambda) the KL then weighs beta at every lambda.
        of_reward = token_scores(rewards, old - reference, response_mask, args.beta)
        of_cost = token_scores(costs, old - reference, response_mask, -args.beta)
        reward_a, reward_returns = gae(of_reward, values[..., 0], response_mask, args.gae_lambda)
        cost_a, cost_returns = gae(of_cost, values[..., 1], response_mask, args.gae_lambda)
        advantages = combine(reward_a, cost_a, response_mask, multiplier)
        batch = (ids, response_mask, old, values, advantages, torch.stack([reward_returns, cost_returns], -1))
        policy_losses, critic_losses = update(models, optimizers, batch, args)
        row = {
            "step": step + 1,
            "reward": rewards.mean().item(),
            "cost": costs.mean().item(),
            "kl": (old - reference).sum(1).mean().item(),
            "multiplier": multiplier,
            "policy_loss": fmean(policy_losses),
            "reward_loss": fmean(loss for loss, _ in critic_losses),
            "cost_loss": fmean(loss for _, loss in critic_losses),
        }
        history.append(row)
        report("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return history


if __name__ == "__main__":
    (chosen,) = HfArgumentParser(Args).parse_args_into_dataclasses()
    if chosen.method not in ("rectified", "lagrangian"):
        raise SystemExit(f"--method is {chosen.method!r}: expected rectified or lagrangian")
    train(chosen)
