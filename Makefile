# Two commands on a fresh machine: `make table4_dgad` (or any other notebook's name) and `make test`.
# The environment is made on first use; PYTHON chooses the interpreter (3.11 to 3.14).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
STRIP := python3 "$$(git rev-parse --git-common-dir)/strip_notebook.py"

.PHONY: all env lab test test-all check lock audit clean evidence kept site report executed
.DEFAULT_GOAL := help

help:
	@echo "make <notebook>   run notebooks/<notebook>.ipynb; its copy goes to outputs/executed/"
	@echo "make test         run the tests          make test-all   the slow ones too"
	@echo "make check        lint and types         make lock       renew requirements.lock"
	@echo "make audit        look for known weaknesses of the locked packages"
	@echo "make lab          open JupyterLab        make evidence   make what params/evidence.yaml lists"
	@echo "make kept         what readers see of it: README's table, executed notebooks as HTML"
	@echo "make all          plan every table and figure of the papers as one graph and make what is missing (ARGS=-n: only plan)"
	@echo "make site         outputs/site/: every table, figure and walk-through as a page"
	@echo "make report       outputs/report/: every table and figure in one PDF and one zip"
	@echo "notebooks: $(patsubst notebooks/%.ipynb,%,$(wildcard notebooks/*.ipynb))"

env: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "Python 3.11 to 3.14 is needed; say which with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@if test -e .git; then \
		cp .ci/strip_notebook.py "$$(git rev-parse --git-common-dir)/"; \
		git config filter.nbstripout.clean '$(STRIP)'; \
		git config filter.nbstripout.smudge cat; \
		git config diff.ipynb.textconv '$(STRIP)'; fi
	@touch $@

lab: $(READY)
	$(BIN)/jupyter lab --KernelManager.transport=ipc notebooks/index.ipynb $(value ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(value ARGS)

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(value ARGS)

check: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# every run of the papers' tables and figures once, after which their notebooks train nothing; ARGS="-n" only prints the plan
all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m lib.experiment.everything $(value ARGS)

# the kept evidence, run by run; ARGS="-n" only prints what is there and what is missing
evidence: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m lib.experiment.evidence $(value ARGS)

# what readers see of it: README's picture and table, and its notebooks over the rows that are complete, as HTML beside it
kept: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python site/readme.py
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python site/executed.py $(value ARGS)

# the static pages: what was run is shown with its results, the rest with the papers' numbers and the kept evidence
site: report
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python site/pages.py
	$(BIN)/python -m sphinx -q -W -E -c site outputs/site_source outputs/site
	@echo "outputs/site/index.html"

# every notebook but those that time the machine or want a model of yours; what is in the run store is not trained again
TIMED := benchmark_cluster benchmark_evaluation benchmark_speed speedrun_robust evaluate_your_model
executed: $(filter-out $(TIMED),$(patsubst notebooks/%.ipynb,%,$(wildcard notebooks/*.ipynb)))

report: $(READY)
	$(BIN)/python site/paper.py

lock: $(READY)
	$(BIN)/uv pip compile pyproject.toml --extra cluster --extra dev --extra site --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --no-emit-index-url --quiet --upgrade --output-file requirements.lock

# pip-audit is not in the lock: uv, which is, fetches it into its own cache, and nothing is installed. It asks PyPI
# about every package of the lock, so it needs a network.
audit: $(READY)
	$(BIN)/uv tool run pip-audit --require-hashes --disable-pip --requirement requirements.lock $(value ARGS)

clean:
	rm -rf $(VENV) *.egg-info

# any notebook by its name; ARGS goes to papermill as a shell reads it: make table4_dgad ARGS="-p scale gpu"
%: notebooks/%.ipynb $(READY)
	@mkdir -p outputs/executed
	$(BIN)/papermill --engine dynamic_at --no-progress-bar --log-output $< outputs/executed/$@.ipynb $(value ARGS)
