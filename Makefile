# Thin names for documented commands. Everything happens in .venv, which is made here.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
CORES ?= 2
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES)

.PHONY: install demo test mutants planted lint site agentdojo four_bit bench clean

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e .
	touch $@

demo: install            ## the headlines in miniature: tables, figure, claims
	$(SNAKEMAKE) --configfile config/miniature.yaml config/demo.yaml --quiet rules host -- all
	$(BIN)/bulwark status --configfile config/miniature.yaml config/demo.yaml

# One worker per core; tests that share something expensive run on one of them (tests/conftest.py), the longest first.
test: install            ## every test
	$(BIN)/pip install --quiet -e '.[test]'
	$(BIN)/python -m pytest -n $(CORES) --dist loadscope --no-loadscope-reorder

mutants: install         ## whether a change of any formula turns a test red; some of them: SOME="aside steering/onset"
	$(BIN)/python tests/mutants.py --jobs $(CORES) $(SOME)

planted: install         ## whether mistakes in our code change the verdict of their claim, in miniature; some: SOME="steering_with"
	$(BIN)/python tests/planted.py --cores $(CORES) $(SOME)

lint: install            ## style of Python and of the rules; types on the ground floors
	$(BIN)/pip install --quiet -e '.[lint]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy

agentdojo: install       ## what the benchmark agentdojo needs
	$(BIN)/pip install --quiet -e '.[agentdojo]'

four_bit: install        ## what an attack on refusals in 4 bits needs, and its test
	$(BIN)/pip install --quiet -e '.[four_bit]'
	$(BIN)/python -m pytest -q tests/unit/abliteration/test_four_bit_search.py

site: install            ## the documents and the library's docstrings as a site, links checked: site/site/index.html
	$(BIN)/pip install --quiet -e '.[docs]'
	$(BIN)/python docs/build.py site

bench: install           ## speed, as ratios (docs/speed.md)
	$(BIN)/python -m bench

clean:                   ## forget the results, keep the environment
	rm -rf results/* .snakemake
