# Everything a newcomer, a developer and CI run. `make setup` needs Python 3.11 or 3.12 and a package index.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := --extra pipelines --extra training --extra serving --group dev
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --quiet

SELECTED := not gpu and not network and not exhaustive

.PHONY: setup browser demo test test-all test-unit test-integration test-gpu check format lock clean

setup: .venv/.complete ## environment with every dependency, pinned and hash-checked

.venv/.complete: requirements.lock pyproject.toml tests/conformance/openai2.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes --target .venv/openai2 -r tests/conformance/openai2.lock
	touch $@

browser: ## a Chromium for the playground's tests, where there is none and this user may install one (Debian, Ubuntu)
	@command -v chromium chromium-browser google-chrome >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
		|| echo "no Chromium here and none can be installed: the playground's tests will be skipped"

demo: setup ## raw videos to a served clip, on the CPU, offline; ends in demo/index.html
	$(BIN)/python tests/e2e/demo.py --out demo

test: setup browser ## what CI runs, without GPU and network: tests that start a Ray beside all others
	$(MAKE) --no-print-directory -k -j2 --output-sync=line test-integration test-unit

test-all: ## the same, and every further size or place of a test (marked exhaustive)
	$(MAKE) --no-print-directory test SELECTED="not gpu and not network"

test-unit: setup ## tests of one process, or of a few small ones
	$(BIN)/python -m pytest -m "$(SELECTED)" --ignore tests/integration tests

test-integration: setup ## tests on a real Ray, Ray Train and Ray Serve
	$(BIN)/python -m pytest -m "$(SELECTED)" tests/integration

test-gpu: setup ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

check: setup ## format, lint, types, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports

format: setup ## rewrites files to the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## resolves the dependencies anew (needs an environment with uv: make setup)
	$(COMPILE) $(EXTRAS) -o requirements.lock
	$(foreach x,pipelines training serving,$(COMPILE) --extra $(x) -c requirements.lock -o infra/docker/requirements-$(x).lock;)
	$(BIN)/uv pip compile infra/docker/mlflow.in --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --quiet -c requirements.lock \
		-o infra/docker/requirements-mlflow.lock
	$(BIN)/uv pip compile pyproject.toml --python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet \
		--extra pipelines --extra llm --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		-o infra/docker/requirements-llm.lock
	$(BIN)/uv pip compile tests/conformance/openai2.in --no-deps --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --quiet -o tests/conformance/openai2.lock

clean: ## what the demo and the tests leave behind
	rm -rf demo .pytest_cache .ruff_cache
