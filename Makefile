# make run     the whole study, from the data to the README's tables
# make test    unit tests, and every notebook in the quick profile
# make lab     Jupyter
# make experiment MODEL=vgg16_transfer SET="hidden_units=64,128 dropout=0.3"   what changes of settings are worth
# make figures every figure and the README's tables, from results/
# make seeds   five training runs of each model; SEEDS="0 1 2" for others
# make ladder  what each step of notebooks 02 and 03 is worth, by cross-validation
# make bench   what the study costs on this machine
# make export  the model that the service runs, from the study's
# make serve   the service and its page on 127.0.0.1:8000
# make lock    new versions in requirements.txt; UPGRADE=--upgrade for the newest
.PHONY: run test lab experiment figures seeds ladder bench export serve bench-serve fuzz lock clean

# The newest Python of those supported that can make a virtual environment. Another: make PYTHON=/path/to/python run
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	$$python -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)
NEED_PYTHON = $(if $(PYTHON),,$(error No Python 3.11, 3.12 or 3.13 with venv found: install one \
	(on Debian and Ubuntu: apt install python3 python3-venv; elsewhere from python.org), \
	or name it: make PYTHON=/path/to/python run))
BIN := .venv/bin
SERVE := .venv-serve/bin
PIP := -m pip install --quiet --disable-pip-version-check --constraint requirements.txt
SEEDS ?= 0 1 2 3 4
FUZZ ?= 3000
# Sweeps in several processes (WORKERS=2) or on a Dask cluster (DASK=tcp://scheduler:8786).
SPREAD = $(if $(WORKERS),--workers $(WORKERS)) $(if $(DASK),--dask $(DASK))

run: .venv/ready
	$(BIN)/python scripts/run_study.py

test: .venv/ready-test .venv-serve/ready
	rm -rf scratch
	SHIP_TRUCK_PROFILE=quick SHIP_TRUCK_SERVE=$(SERVE)/python $(BIN)/python -m pytest \
		--numprocesses auto --maxprocesses 4

lab: .venv/ready
	$(BIN)/jupyter lab notebooks

experiment: .venv/ready$(if $(DASK),-cluster)
	$(BIN)/python scripts/experiment.py "$(MODEL)" "$(SET)" $(SPREAD)

figures: .venv/ready
	$(BIN)/python scripts/figures.py

seeds: .venv/ready$(if $(DASK),-cluster)
	$(BIN)/python scripts/sweep.py seeds --seeds $(SEEDS) $(SPREAD)
	$(BIN)/python scripts/run_study.py 04

ladder: .venv/ready$(if $(DASK),-cluster)
	$(BIN)/python scripts/sweep.py ladder $(SPREAD)

bench: .venv/ready
	$(BIN)/python scripts/benchmark.py
	$(BIN)/python scripts/run_study.py 04

export: .venv/ready-export
	$(BIN)/python service/export.py

serve: .venv-serve/ready
	$(SERVE)/python service/app.py

bench-serve: .venv/ready-bench .venv-serve/ready
	$(BIN)/python service/bench.py $(SERVE)/python

# The property-based test of the service, at length.
fuzz: .venv/ready-test
	SHIP_TRUCK_FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/test_service.py -k damaged_photos

lock: .venv/ready-lock
	$(BIN)/python scripts/lock.py $(UPGRADE)

# The marks are written last, so that an interrupted set-up starts again.
.venv/ready: requirements.txt environment.yml
	$(NEED_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) pip
	sed -n 's/^      - \([a-z][a-z0-9-]*\) .*/\1/p' environment.yml > .venv/names.txt
	$(BIN)/python $(PIP) --requirement .venv/names.txt
	touch $@

# What a command needs besides: a group of pyproject.toml.
.venv/ready-%: .venv/ready pyproject.toml
	$(BIN)/python $(PIP) --group $*
	touch $@

# Serving needs no TensorFlow, so it has an environment of its own.
.venv-serve/ready: service/requirements.txt requirements.txt
	$(NEED_PYTHON)
	$(PYTHON) -m venv .venv-serve
	$(SERVE)/python -m pip install --quiet --disable-pip-version-check --requirement service/requirements.txt
	touch $@

clean:
	rm -rf .venv .venv-serve cache scratch data/png
	find . -name '.unfinished-*' -delete
