# `make demo` and `make test` need nothing but Python (3.11 or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test soak reliability check audit format bench docs clean

# Only what the tests of the machine's cores need: more threads than cores make everything slower.
export OMP_NUM_THREADS ?= 1

# The kernels are compiled by the installation.
KERNELS := hatch_build.py $(wildcard optim/larosa/kernels/*.[ch])

$(STAMP): pyproject.toml constraints.txt $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# What the demo's optimisations need is prepared once, and taken from there afterwards.
DEMO := runs/demo-artifacts
PREPARE_LAROSA = $(BIN)/optrial prepare larosa --reuse --data demo/training \
	--sequences 8 --held-out 0 --levels 0.4

demo: $(STAMP)
	$(BIN)/optrial prepare adaptivocab --reuse --model demo --data demo/training --expand 2000 \
		--tune-mib 0.5 --bfloat16 --trained-layers all --cpus 2 --out $(DEMO)/vocabulary
	$(PREPARE_LAROSA) --model $(DEMO)/vocabulary --out $(DEMO)/larosa/adapted
	$(PREPARE_LAROSA) --model $(DEMO)/vocabulary/tuned --out $(DEMO)/larosa/tuned
	$(BIN)/optrial evaluate examples/demo.yaml --claims authors --no-gate

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile

soak: $(STAMP)
	$(BIN)/python -m pytest -m slow

# What is lost when something dies, measured beside what is accepted.
RELIABILITY := tests/reliability $(addprefix tests/,cluster/results/test_verify.py \
	cluster/scheduling/test_scheduler.py jobs/trial/test_identity.py \
	jobs/provenance/test_identity_code.py end_to_end/test_cli.py)
reliability: $(STAMP)
	OPTRIAL_FIGURES=benchmarks/results/reliability-cpu-2-cores.json \
		$(BIN)/python -m pytest -m 'slow or not slow' $(RELIABILITY)

check: $(STAMP) audit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Says so, and does not fail, where the service of advisories cannot be reached.
audit: $(STAMP)
	$(BIN)/python .ci/audit.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.engine.engine
	$(BIN)/python -m benchmarks.cluster.orchestration
	$(BIN)/python -m benchmarks.kv_cache.kv_cache
	$(BIN)/python -m benchmarks.sparsity.sparse_gemv
	$(BIN)/python -m benchmarks.engine.decode
	$(BIN)/python -m benchmarks.engine.weight_order
	$(BIN)/python -m benchmarks.sparsity.sparsity_quality
	$(BIN)/python -m benchmarks.vocabulary.vocabulary
	$(BIN)/python -m benchmarks.vocabulary.adaptation_quality --mib 0.35
	$(BIN)/python -m benchmarks.statistics.statistics
	$(BIN)/python -m benchmarks.cluster.summary
	$(BIN)/python -m benchmarks.cluster.parts
	$(BIN)/python -m benchmarks.cluster.scale

docs: $(STAMP)
	$(BIN)/python -m docs.generate

clean:
	rm -rf runs build dist .mypy_cache .ruff_cache .pytest_cache
