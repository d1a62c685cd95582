# make run    the whole study, from the data to the README's table
# make test   unit tests, and every notebook in the quick profile
# make seeds  five training runs of each model; SEEDS="0 1 2" for others
# make ladder what each step of notebooks 02 and 03 is worth, by cross-validation
# make bench  what the study costs on this machine
# make serve  the service and its page on 127.0.0.1:8000
# make lab    Jupyter
PYTHON ?= python3.11
BIN := .venv/bin

SERVE := .venv-serve/bin

.PHONY: run test seeds ladder bench serve bench-serve fuzz lab lock clean
SEEDS ?= 0 1 2 3 4

run: .venv/ready
	$(BIN)/python run_study.py

test: .venv/ready
	SHIP_TRUCK_PROFILE=quick $(BIN)/python -m pytest

seeds: .venv/ready
	$(BIN)/python sweep.py seeds --seeds $(SEEDS)
	$(BIN)/python run_study.py 04

ladder: .venv/ready
	$(BIN)/python sweep.py ladder --models three_block_cnn --folds 0 1 2
	$(BIN)/python sweep.py ladder --models vgg16_transfer

bench: .venv/ready
	$(BIN)/python benchmark.py
	$(BIN)/python run_study.py 04

serve: .venv-serve/ready
	$(SERVE)/python app.py

bench-serve: .venv/ready .venv-serve/ready
	$(BIN)/python bench_serve.py $(SERVE)/python

# The property-based test of the service, at length.
FUZZ ?= 3000
fuzz: .venv/ready
	SHIP_TRUCK_FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/test_app.py -k damaged_photos

lab: .venv/ready
	$(BIN)/jupyter lab notebooks

# The mark is written last, so that an interrupted set-up starts again.
.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Serving needs no TensorFlow, so it has an environment of its own.
.venv-serve/ready: requirements-serve.txt requirements.txt
	$(PYTHON) -m venv .venv-serve
	$(SERVE)/python -m pip install --quiet --disable-pip-version-check -r requirements-serve.txt
	touch $@

# Take the newest versions of what environment.yml names, and pin them with all they need.
lock:
	rm -rf .venv
	$(PYTHON) -m venv .venv
	sed -n 's/^      - \([a-z].*\)/\1/p' environment.yml > .venv/names.txt
	$(BIN)/python -m pip install -r .venv/names.txt
	$(BIN)/python -m pip freeze > requirements.txt

clean:
	rm -rf .venv .venv-serve cache scratch data/png
