# make demo    fine-tune the real MiniLM on real review sentences by all three methods; a table and a report
# make test    the test suite, without PyTorch        make test ARGS="-k partition"
# make test-long  the tests that take long: whole runs killed, compared, spread over devices and processes
# make parity  the tests that compare with PyTorch and TensorFlow
# make test-pages  the programs that pages, notebooks and CONTRIBUTING show
# make test-pythons  a short part of the tests on every other Python, 3.11 to 3.13, that this machine has
# make lint    ruff and mypy                          make format  let ruff mend what it can
# make docs    the documentation as a site, in build/site; fails on a broken link
# make clean   remove the virtual environments and what demo and tests wrote
# Every target sets up what it needs first, once.

PYTHON ?= python3
.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-pages test-pythons parity lint format docs clean
PIP = -m pip --quiet --disable-pip-version-check install

help:
	@sed -n '/^# /!q; s/^# //p' Makefile

# A stamp is written last, so an installation that was cut short is done again.
.venv/installed: requirements/lock.txt requirements/demo.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ftjax needs Python 3.11 or newer; name one with: make PYTHON=python3.11"; exit 2; }
	@echo "Setting up .venv (one to five minutes; nothing is shown until it is done) ..."
	@$(PYTHON) -m venv --clear .venv
	@.venv/bin/python $(PIP) --require-hashes -r requirements/lock.txt
	@.venv/bin/python $(PIP) --no-deps --require-hashes -r requirements/demo.txt
	@.venv/bin/python $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# A second environment, on top of the first one, which stays without PyTorch: so the suite proves that it needs none.
.venv-parity/installed: .venv/installed requirements/parity.txt
	@echo "Setting up .venv-parity with PyTorch and TensorFlow (two to eight minutes; nothing is shown until it is done) ..."
	@$(PYTHON) -m venv --clear .venv-parity
	@packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  echo "import site; site.addsitedir('$$(.venv/bin/python -c "$$packages")')" > \
	  "$$(.venv-parity/bin/python -c "$$packages")/first.pth"
	@.venv-parity/bin/python $(PIP) -r requirements/parity.txt
	@touch $@

# A third one, small: the site is built from text alone.
.venv-docs/installed: requirements/docs.txt
	@echo "Setting up .venv-docs (some seconds) ..."
	@$(PYTHON) -m venv --clear .venv-docs
	@.venv-docs/bin/python $(PIP) --require-hashes -r requirements/docs.txt
	@touch $@

demo: .venv/installed
	@.venv/bin/python experiments/demo.py

test: .venv/installed
	@.venv/bin/python -m pytest -n 2 --dist loadgroup -m "not parity and not long and not pages" $(ARGS)

test-long: .venv/installed
	@.venv/bin/python -m pytest -n 2 --dist loadgroup -m "long and not parity and not pages" $(ARGS)

test-pages: .venv/installed .venv-parity/installed
	@.venv/bin/python -m pytest -n 2 --dist loadgroup -m "pages and not parity" $(ARGS)
	@.venv-parity/bin/python -m pytest -m "pages and parity" $(ARGS)

test-pythons: .venv/installed
	@.ci/pythons

parity: .venv-parity/installed
	@.venv-parity/bin/python -m pytest -m "parity and not pages" $(ARGS)

lint: .venv/installed
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

format: .venv/installed
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

docs: .venv-docs/installed
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=. .venv-docs/bin/mkdocs build

clean:
	rm -rf .venv .venv-parity .venv-docs .venv-3.* build/site .pytest_cache .ruff_cache .mypy_cache .hypothesis .xla-cache runs data *.egg-info
