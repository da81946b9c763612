"""The one exception for mistakes that the user can fix, and the limits of the commands' numbers. Imports no other module."""

from __future__ import annotations

from numbers import Real


class UserError(ValueError):
    """Bad input, explained in one sentence: what was found, where, and what was expected.

    The command line prints the sentence, without a traceback, and exits with status 2.
    """


_MOST, _INF = 2**31 - 1, float("inf")
_LIMITS = {name: limits for *limits, names in (  # what is expected, the least, the most, the options
    ("a whole number from 1", 1, _MOST,
        "attack_tries batch batch_size bootstrap chatting checkpoint_every evaluate hidden_size judge_tries judged layers limit "
        "max_length max_new_tokens max_prompt_length micro_batch_size microbatch microbatch_size minibatch_size new_tokens "
        "offline_prompts offline_samples pairs policy_layers prompt_tokens rank requests rounds samples_per_prompt scorer_layers steps "
        "train_labels train_pairs train_prompts tries vocabulary workers"),
    ("a whole number from 0", 0, _MOST, "attacked critic_warmup episodes reading talks warmup_steps"),
    ("a whole number from 0 to 4294967295", 0, 2**32 - 1, "scorer_seed seed seeds"),
    ("a positive number", 5e-324, _INF,
        "alpha beta clip epochs max_grad_norm safety_beta score_clip scorer_epochs target_kl value_clip"),
    ("a number from 0", 0, _INF,
        "checkpoint_seconds critic_learning_rate kl_coefficient learning_rate max_multiplier offset optimal_multiplier penalty ptx "
        "regularization suboptimality temperature weight_decay"),
    ("a number from 0 to 1", 0, 1, "confidence dropout gae_lambda gamma warmup"),
    ("a number from 0 and below 1", 0, 1 - 2**-53, "find_share"),
    ("a number", -_INF, _INF, "missing_eos_penalty threshold"),
) for name in names.split()}  # fmt: skip


def check_numbers(config: object) -> None:
    """Raise UserError if a number in these options (a dataclass, with those in it) is not None and not within its limits."""
    for name, value in vars(config).items():
        if hasattr(value, "__dataclass_fields__"):
            check_numbers(value)
        if name in _LIMITS:
            expected, least, most = _LIMITS[name]
            for each in value if isinstance(value, tuple) else (value,):
                if each is not None and not (isinstance(each, Real) and least <= each <= most):
                    raise UserError(f"{name} is {each}: expected {expected}")
