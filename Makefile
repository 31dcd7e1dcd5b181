# Everything that people and CI run. Each target sets up .venv itself; PYTHON=python3.12 picks the interpreter it is made of.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# A change of the kernel installs anew, which compiles what changed.
PYPROJECTS := pyproject.toml clients/python/pyproject.toml $(wildcard vecmem/index/_kernel/*.cpp vecmem/index/_kernel/*.h vecmem/index/_kernel/CMakeLists.txt vecmem/store/*.cpp)

# One pip command for both distributions: vecmem needs vecmem-client of the same version, which comes from this tree.
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev

# The full data set's directory, for instance `make demo DATA=../shared/data`; without it the project's own slice.
DATA ?=
DATASET ?= $(if $(DATA),$(DATA),bench/data)
SERVE ?=
# The scenario and its flags, for instance `make bench BENCH="filter --plot build/plots"`.
BENCH ?= ann

# Twice as many modules at a time as there are processors: half of a test is waiting, for a process to start or for a disk.
SEVERAL := --numprocesses 4 --dist loadfile

.PHONY: demo test test-long serve bench proto lint format clean help

help: ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(RUN_STAMP) ## Index real documents, answer questions, kill -9, come back, answer the same
	@$(BIN)/python -m bench demo --dataset $(DATASET)

serve: $(RUN_STAMP) ## Keep a server running; SERVE="--listen 127.0.0.1:7701" adds flags
	@$(BIN)/vecmem serve $(SERVE)

bench: $(RUN_STAMP) ## Measure: tables on the terminal; DATA=directory for the full data set
	@$(BIN)/python -m bench $(BENCH) --dataset $(DATASET)

# What the API promises holds over several shards, and on both gRPC engines.
API_TESTS := tests/api tests/node clients/python/tests
POINT_TESTS := $(addprefix tests/api/test_,points.py queries.py scroll.py batches.py payload_indexes.py)

test: lint ## Lint, types, stubs and all tests but the long ones; those of the API over both gRPC engines and two shards
	TEST_CLIENTS=sync $(BIN)/python -m pytest $(SEVERAL) -m "not long"
	TEST_CLIENTS=async TEST_SHARDS=2 VECMEM_GRPC_ENGINE=grpcio $(BIN)/python -m pytest $(SEVERAL) -m "not long" $(API_TESTS)

test-long: $(DEV_STAMP) ## The soaks, both clients on one shard, and what the API promises of points over five
	$(BIN)/python -m pytest -m long
	$(BIN)/python -m pytest $(SEVERAL) -m "not long" clients/python/tests
	TEST_SHARDS=5 $(BIN)/python -m pytest $(SEVERAL) -m "not long" $(POINT_TESTS)

lint: $(DEV_STAMP) ## Style, types, protos, what deploys, and that generated files are fresh
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/yamllint --strict --config-file deploy/.yamllint.yaml deploy
	$(BIN)/kubernetes-validate --strict --quiet $(filter-out %/kustomization.yaml,$(wildcard deploy/kubernetes/*.yaml))
	$(BIN)/hadolint deploy/docker/Dockerfile
	$(BIN)/python scripts/generate_stubs.py --check
	$(BIN)/python clients/python/scripts/generate_sync.py --check

format: $(DEV_STAMP) ## Put the code into the one format
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

proto: $(DEV_STAMP) ## Generate the stubs from proto/, and the sync client from the asyncio one
	$(BIN)/python scripts/generate_stubs.py
	$(BIN)/python clients/python/scripts/generate_sync.py

clean: ## Remove what the other targets made
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, and $(PYTHON) is older: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(RUN_STAMP): $(PYPROJECTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e clients/python -e '.[import,native]'
	@touch $@

$(DEV_STAMP): $(PYPROJECTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e 'clients/python[langchain]' -e '.[import,native,cluster,dev]'
	@touch $(RUN_STAMP) $@
