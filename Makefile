# Two commands are all a new machine needs: `make demo` and `make test` (python3, make and pip).
PYTHON ?= python3
VENV   ?= .venv
# Extra arguments for pip, e.g. PIP_ARGS="--index-url https://..." for a mirror or a CPU-only torch.
PIP_ARGS ?=
# What `make bench` measures with; without arguments it runs in single precision and takes much longer on a CPU.
BENCH_ARGS ?= --dtype bf16 --steps 1
# threads of small models that share a machine should sleep, not spin, while they wait for each other
export OMP_WAIT_POLICY ?= passive
# How many random inputs `make fuzz` tries in all, and from which seed on.
EXAMPLES ?= 10000
SEED ?= 0
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test conformance fuzz mutants interrupts lint bench bench-world same parity docs packages clean

$(READY): pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.txt -e ".[dev]"
	touch $@

demo: $(READY)  ## a prompt that leaks, why, and the repaired image: demo/index.html
	$(BIN)/unleak demo -o demo

test: $(READY)  ## lint, types and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

conformance: $(READY)  ## every verb on a tiny pipeline of every kind, as docs/conformance.md: minutes; goes on where it was
	OMP_NUM_THREADS=1 PYTHONPATH=src:tests $(BIN)/python -m conformance

fuzz: $(READY)  ## 10,000 random inputs of commands, files, saved things and methods: about 15 minutes on one core
	UNLEAK_FUZZ=$(EXAMPLES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz --hypothesis-seed=$(SEED)

mutants: $(READY)  ## break named places of the product, one at a time, and list those that no test notices
	$(BIN)/python tests/mutants.py -j 2

interrupts: $(READY)  ## 1,000 interrupts at random moments of sessions: is the next plain call bitwise the first?
	PYTHONPATH=src $(BIN)/python benchmarks/interrupts.py --count 1000

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

bench: $(READY)  ## cost of the mechanism, as ratios to the bare pipeline in the same run; memory and time of long files
	$(BIN)/python benchmarks/overhead.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/editing.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/scanning.py
	$(BIN)/python benchmarks/files.py

bench-world: $(READY)  ## how well the embedded models draw their world, on held-out prompts
	$(BIN)/unleak bench world -o docs/results/world
	$(BIN)/unleak bench world -m emoji-flux -o docs/results/world-flux

same: $(READY)  ## do all methods still draw and score what they did? a sample of every row of docs/results, bit by bit
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/same.py

parity: $(READY)  ## make parity ORACLE=DIR: compare with the authors' golden tensors
	$(BIN)/python -m pytest -m parity --oracle $(abspath $(ORACLE))

docs: $(READY)  ## the site of docs/, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

packages: $(READY)  ## both wheels in dist/, checked, installed into an empty environment, where the demo is drawn
	rm -rf dist && $(BIN)/python -m build --wheel -o dist . && $(BIN)/python -m build --wheel -o dist packages/worlds
	$(BIN)/twine check dist/*.whl
	$(PYTHON) -m venv dist/empty
	dist/empty/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) dist/*.whl
	dist/empty/bin/python -m pip check
	cd dist && empty/bin/unleak demo -o demo

clean:
	rm -rf $(VENV) dist site demo .pytest_cache .mypy_cache .ruff_cache
