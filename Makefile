# `make` alone lists the commands.
.PHONY: help run test test-all lab experiments figures export site serve bench-serve lint lock metal

help:
	@echo 'make run          the whole study, from the data to the table of the README'
	@echo 'make test         unit tests, and every result that the notebooks print'
	@echo 'make test-all     the website in a browser and the service under damaged photos as well; needs npm and Chromium'
	@echo 'make lab          Jupyter'
	@echo 'make figures      the table and the figures of the README, from results/'
	@echo 'make experiments  other seeds, fewer images, no label smoothing: all of scripts/experiments.yaml'
	@echo 'make export       the model that the service runs, from that of the study'
	@echo 'make site         the website in site/public: this study, and its model in the browser; needs npm'
	@echo 'make serve        the service, and the website if it is built, on 127.0.0.1:8000'
	@echo 'make bench-serve  how fast the service answers on this machine'
	@echo 'make lint         ruff: mistakes and layout, notebooks too'
	@echo 'make lock         uv.lock and the requirements from pyproject.toml; UPGRADE=--upgrade for the newest'
	@echo
	@echo 'make experiments takes NAMES="cnn_seeds vgg16_seeds", WORKERS=2 (runs at a time) or DASK=tcp://SCHEDULER:8786.'
	@echo 'Packages go to .venv and .venv-serve here. Another Python: make PYTHON=/path/to/python run'

# The newest Python of those supported that can make a virtual environment, or the one that PYTHON names.
FITTING = $(shell for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python); do \
	$$python -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)
define NO_PYTHON
No Python 3.11, 3.12 or 3.13 with venv found$(if $(PYTHON), as $(PYTHON)) (there is no TensorFlow for 3.14 yet).
  Debian, Ubuntu:  apt install python3 python3-venv
  anywhere, by uv: uv python install 3.13
                   make PYTHON=$$(uv python find 3.13) run
  or from python.org
endef
NEED_PYTHON = $(if $(FITTING),,$(error $(NO_PYTHON)))

UV_VERSION := 0.13.9
BIN := .venv/bin
SERVE := .venv-serve/bin
PIP := -m pip install --quiet --disable-pip-version-check
# uv trusts the certificates that the system trusts, as pip does.
export UV_SYSTEM_CERTS := 1

run: .venv/ready metal
	$(BIN)/python scripts/run_study.py

PYTEST = SHIP_TRUCK_SERVE=$(SERVE)/python $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

test: .venv/ready-test .venv-serve/ready
	$(PYTEST)

test-all: test .venv/ready-test-all site/node_modules/ready
	$(PYTEST) tests/long

lab: .venv/ready metal
	$(BIN)/jupyter lab notebooks

figures: .venv/ready
	$(BIN)/python scripts/run_study.py 04

experiments: .venv/ready$(if $(DASK),-cluster) metal
	$(BIN)/python scripts/experiments.py $(NAMES) $(if $(WORKERS),--workers $(WORKERS)) $(if $(DASK),--dask $(DASK))

export: .venv/ready-export
	$(BIN)/python service/export.py
	$(BIN)/python scripts/run_study.py 08

site: site/node_modules/ready .venv/ready-site
	$(BIN)/python site/build.py

serve: .venv-serve/ready
	$(SERVE)/python -m service

bench-serve: .venv/ready-bench .venv-serve/ready
	$(BIN)/python service/bench.py $(SERVE)/python

lint: .venv/ready-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check

EXPORT := $(BIN)/uv export --quiet --frozen --no-hashes --no-annotate
lock: .venv/uv-$(UV_VERSION)
	$(BIN)/uv lock $(UPGRADE)
	$(EXPORT) --output-file requirements.txt
	$(EXPORT) --only-group serve --output-file service/requirements.txt

# Says nothing elsewhere: only a Mac can have it, and only if its owner installed it.
metal: .venv/ready
	@$(BIN)/python -c 'from importlib.metadata import version; version("tensorflow-metal")' 2>/dev/null && echo \
		'Warning: tensorflow-metal is in .venv. The networks train wrongly with it: $(BIN)/pip uninstall tensorflow-metal' \
		>&2 || true

# $(call install,ARGUMENTS,NAME): uv installs what uv.lock has for these arguments. Where only pip is told the way to
# the index (a mirror in its configuration), pip installs the same. Neither removes what a reader has added. Compiled, the
# packages load at once also where Python may not write beside them: TensorFlow in 5 s instead of 13 s.
define install
	@echo 'Installs into .venv what uv.lock has for: $(2)'
	@UV_PROJECT_ENVIRONMENT=.venv $(BIN)/uv sync --quiet --frozen --inexact --compile-bytecode --python $(BIN)/python $(1) || { \
		echo 'uv could not, so pip tries.' >&2; \
		$(BIN)/uv export --quiet --frozen $(1) --output-file .venv/wanted.txt \
		&& $(BIN)/python $(PIP) --requirement .venv/wanted.txt; }
	@touch $@
endef

# The marks are written last, so that an interrupted set-up starts again.
.venv/uv-$(UV_VERSION):
	$(NEED_PYTHON)
	$(FITTING) -m venv .venv
	$(BIN)/python $(PIP) uv==$(UV_VERSION)
	touch $@

.venv/ready: .venv/uv-$(UV_VERSION) uv.lock
	$(call install,,the study)

.venv/ready-lint: .venv/uv-$(UV_VERSION) uv.lock
	$(call install,--only-group lint,lint)

# What a command needs besides: a group of pyproject.toml.
.venv/ready-%: .venv/ready
	$(call install,--group $*,$*)

# Serving needs no TensorFlow, so it has an environment of its own.
.venv-serve/ready: service/requirements.txt
	$(NEED_PYTHON)
	$(FITTING) -m venv .venv-serve
	$(SERVE)/python $(PIP) --requirement service/requirements.txt
	touch $@

# ONNX Runtime for the browser.
site/node_modules/ready: site/package-lock.json
	@command -v npm >/dev/null || { echo 'npm is missing, which the website needs; on Debian: apt install npm' >&2; exit 1; }
	cd site && npm ci --silent --ignore-scripts --no-audit --no-fund
	touch $@
