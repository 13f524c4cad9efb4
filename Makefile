# make demo: data, reward training, policy training, report.   make test: the whole test suite.   make help: the rest.
# All make the virtual environment on their first run. PYTHON=python3.12 make demo chooses another interpreter.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# Tests run side by side, one process a core; each computes on one thread.
PYTEST := $(RUN) -m pytest --numprocesses auto --dist worksteal

.PHONY: demo demo-online demo-sentiment check-demo notebooks run-notebooks check quick test bench docs clean help

help:
	@echo "make demo   environment, data, reward training and policy training on task movies, report (16 to 30 minutes on 2 cores)"
	@echo "make demo-online   the same with simulated people who are asked while the policy trains"
	@echo "make demo-sentiment  a sentiment classifier of Hugging Face as the reward: fine-tuned here, then a policy, before and after (20 minutes)"
	@echo "make check-demo  whether the figures of a finished demo lie where static/expected.json says"
	@echo "make notebooks   environment, then Jupyter with the eight notebooks"
	@echo "make run-notebooks   environment, then all notebooks executed and stored with their outputs (half an hour or less on 2 cores)"
	@echo "make check  environment, then ruff and mypy: what every commit must pass"
	@echo "make quick  environment, then the tests of language, learning, data and the command line"
	@echo "make test   environment, then the whole test suite"
	@echo "make bench  environment, then how fast everything is beside other software: the tables of docs/performance.md (an hour)"
	@echo "make docs   environment, then the site of the documentation in build/site (begin with index.html)"
	@echo "make clean  remove the environment (runs and data sets stay)"

# --- environment ---

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: PYTHON=python3.11 make ...')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-run: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-hub: requirements-hub.txt $(VENV)/.installed-run
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-hub.txt
	@touch $@

$(VENV)/.installed-test: requirements-dev.txt $(VENV)/.installed-run
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-docs: requirements-docs.txt $(VENV)/.installed-run
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed-run
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@touch $@

$(VENV)/.installed-notebooks: requirements-notebooks.txt $(VENV)/.installed-run
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-notebooks.txt
	@touch $@

# --- what people type ---

demo: $(VENV)/.installed-run
	$(RUN) datasets/movies.py
	$(RUN) datasets/movies_judge.py
	$(RUN) launch.py train_reward movies demo_reward --run.overwrite
	$(RUN) datasets/movies_reference.py --compare saved_models/demo_reward
	$(RUN) launch.py train_policy movies demo_policy --rewards.trained_model saved_models/demo_reward/reward_model --run.overwrite
	$(RUN) launch.py evaluate movies --policies before=saved_models/tiny,after=demo_policy --samples 1000 \
		--judges sentences=embeddings:datasets/movies_judge,words=ratings:datasets/movies,reward=saved_models/demo_reward \
		--experiment demo_evaluation --overwrite
	$(RUN) launch.py report demo_reward
	$(RUN) launch.py report demo_policy
	$(RUN) launch.py report demo_evaluation

check-demo: $(VENV)/.installed-run
	$(RUN) tests/expected.py demo_reward demo_policy demo_evaluation

demo-online: $(VENV)/.installed-run
	$(RUN) datasets/movies.py
	$(RUN) launch.py train_policy movies demo_online --online on --online.labels 2048 --online.initial_labels 512 --online.retrainings 5 \
		--online.labellers "simulated:ratings:datasets/movies?noise=0.3&people=5" --run.overwrite
	$(RUN) launch.py labels quality demo_online_people
	$(RUN) launch.py evaluate movies --policies before=saved_models/tiny,after=demo_online --samples 1000 \
		--judges rating=ratings:datasets/movies --experiment demo_online_evaluation --overwrite
	$(RUN) launch.py report demo_online
	$(RUN) launch.py report demo_online_evaluation

demo-sentiment: $(VENV)/.installed-hub
	$(RUN) datasets/movies.py
	$(RUN) datasets/movies_sentiment.py
	$(RUN) launch.py train_policy movies demo_sentiment --rewards.trained_model 'hf:datasets/movies_sentiment#POSITIVE:prob' \
		--rewards.kl_coef 0.07 --task.penalty_reward_value 0 --ppo.total_episodes 2048 --run.overwrite
	$(RUN) launch.py evaluate movies --policies before=saved_models/tiny,after=demo_sentiment --samples 1000 \
		--judges 'sentiment=hf:datasets/movies_sentiment#POSITIVE:prob,words=ratings:datasets/movies' \
		--texts datasets/movies/ratings_test.json --experiment demo_sentiment_evaluation --overwrite
	$(RUN) launch.py report demo_sentiment
	$(RUN) launch.py report demo_sentiment_evaluation

notebooks: $(VENV)/.installed-notebooks
	$(RUN) -m jupyter lab notebooks/01_gpt2_and_its_probabilities.ipynb

run-notebooks: $(VENV)/.installed-notebooks
	$(RUN) notebooks/execute.py

check: $(VENV)/.installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

quick: $(VENV)/.installed-test
	$(PYTEST) tests/language tests/learning tests/data tests/commands/test_command_line.py

test: $(VENV)/.installed-test
	$(PYTEST)

bench: $(VENV)/.installed-bench
	$(RUN) -m benchmarks --full --output benchmarks/result.json --page docs/performance.md

docs: $(VENV)/.installed-docs
	$(RUN) docs/pictures.py
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

clean:
	rm -rf $(VENV)
