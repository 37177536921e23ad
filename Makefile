# Two commands do everything on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements.lock
# How many processes share the tests; 0 runs them in one.
WORKERS ?= 2
BIN := $(VENV)/bin
# The stamp remembers what was installed: nothing is reinstalled until the lock, the project file or the version changes.
STAMP := $(VENV)/.installed

.PHONY: help demo test check types lint lint-js test-js format bench bench-all bench-gpu docs notebooks findings gallery lock env release try-release lowest clean

help:  ## Print this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

env: $(STAMP)  ## Install everything into .venv, in the versions of the lock.

$(STAMP): $(LOCK) pyproject.toml ablation_lens/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## Ablate four tiny models by every method of the paper, and write a report; a few minutes.
	$(BIN)/ablation-lens demo

test: $(STAMP)  ## The whole test suite; WORKERS=0 for one process.
	$(BIN)/python -m pytest -n $(WORKERS)

# mypy does not follow the adapters/ → ablation_lens.adapters mapping of pyproject.toml, so the package is put together first.
types: $(STAMP)  ## mypy --strict over the package.
	@rm -rf build/types && mkdir -p build/types
	@cp -r ablation_lens build/types/ablation_lens && cp -r adapters build/types/ablation_lens/adapters
	cd build/types && $(abspath $(BIN))/python -m mypy --config-file ../../pyproject.toml -p ablation_lens

lint: $(STAMP)  ## Format and style of the Python code.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The explorer's scripts; needs Node and npm, and nothing else here does.
lint-js: node_modules/.package-lock.json  ## Style of the explorer's scripts; needs Node and npm.
	node_modules/.bin/eslint .

node_modules/.package-lock.json: package.json package-lock.json
	npm ci --no-audit --no-fund

# The vectors are written by the Python packer.
test-js: $(STAMP)  ## Tests of the explorer's scripts; needs Node.
	$(BIN)/python -m pytest tests/js

check: lint types test  ## What must be green before a commit.

format: $(STAMP)  ## Format the Python code, and mend what can be mended.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One table of ratios, and how they grow: about a quarter of an hour on two quiet cores.
bench: $(STAMP)  ## What the work costs beside others, as one table; a quarter of an hour.
	$(BIN)/python benchmarks/ratios.py

# That, and every other script in detail; the GPU's has a target of its own.
bench-all: bench  ## That, and every benchmark in detail.
	@for script in $(filter-out %/ratios.py %/gpu.py %/peak_memory.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script || exit 1; \
	done

# Within 6 minutes on an H100; needs a CUDA GPU, and no network once the environment is there.
bench-gpu: $(STAMP)  ## Four full-size models on a CUDA GPU; 6 minutes.
	@mkdir -p build
	$(BIN)/python benchmarks/gpu.py --out build/gpu.json

# The site, in build/docs: open build/docs/index.html. Notebooks are run, and kept until they change.
docs: $(STAMP)  ## The site: open build/docs/index.html.
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

# What the notebooks show, as pages; needs a Chrome or Chromium for the figures.
notebooks: $(STAMP)  ## Run the notebooks, and write what they show to docs/notebooks/.
	$(BIN)/python scripts/notebooks.py

# The experiments of docs/findings.md on the zoo, anew or gone on with; FULL=1 for the full grids, which take hours.
findings: $(STAMP)  ## The experiments of docs/findings.md on the zoo; FULL=1 takes hours.
	$(BIN)/python scripts/findings.py $(if $(FULL),--full)

# The five pictures of docs/gallery.md, each by the lines beside it; needs a Chrome or Chromium.
gallery: $(STAMP)  ## The five pictures of docs/gallery.md.
	$(BIN)/python scripts/gallery.py

# Resolve every dependency anew in a throwaway environment and pin what came out.
lock:  ## Resolve every dependency anew, and pin what came out.
	$(PYTHON) scripts/lock.py requirements.lock --pin transformer-lens==3.9.0
	$(PYTHON) scripts/lock.py requirements-tl4.lock --pin transformer-lens==4.3.0 --without docs --without release

# Of a commit: sdist and wheel into dist/, each tried in an empty environment; needs the package index, and minutes.
release: $(STAMP)  ## Build what is released, and try it in an empty environment.
	$(BIN)/python scripts/release.py

# The same in CI: what is built takes its dependencies from here, and is not kept.
try-release: $(STAMP)  ## Build what is released, and try it in this environment.
	$(BIN)/python scripts/release.py --quick

# Once before a release; needs uv, and the package index.
lowest: $(STAMP)  ## Run the tests on the lowest versions that pyproject.toml admits.
	$(BIN)/python scripts/lowest.py $(if $(PIN),--pin $(PIN))

clean:  ## Remove environments and what was built.
	rm -rf $(VENV) .venv-tl4 build dist node_modules *.egg-info
