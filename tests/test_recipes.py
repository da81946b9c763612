"""`csrlhf ppo` and `csrlhf evaluate`, from the command line to the files they leave."""

from __future__ import annotations

import pytest

from csrlhf_kit.errors import UserError
from csrlhf_kit.figures import STYLES
from csrlhf_kit.training.constraints import CONSTRAINTS, make_constraint


def test_one_table_names_every_method():
    assert set(CONSTRAINTS) <= set(STYLES), "figures know each of them"
    for name in CONSTRAINTS:
        made = make_constraint(name, threshold=0.25, penalty=7.0)
        assert type(made) is CONSTRAINTS[name] and made.threshold == 0.25
        assert getattr(made, "penalty", 7.0) == 7.0
    with pytest.raises(UserError, match="method 'magic' is unknown: expected one of ppo, fixed_penalty"):
        make_constraint("magic", threshold=0.0, penalty=1.0)
