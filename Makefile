# Every target sets up what it needs. Only Python 3.11 to 3.14 with pip and a package index are required.
PYTHON ?= python3
ENVIRONMENT := .venv
RUN := $(ENVIRONMENT)/bin/python
INSTALLED := $(ENVIRONMENT)/installed
FORMATS := .venv_formats

export JAX_PLATFORMS ?= cpu

.PHONY: help demo test test-all test-formats lint docs results lock clean

help:
	@echo "make demo      pre-train on Fashion-MNIST, fine-tune on digits, evaluate (2 to 4 minutes on 2 idle cores)"
	@echo "make test      run all tests but the slow ones"
	@echo "make test-all  run all tests"
	@echo "make test-formats  test SavedModel and ONNX, in an environment with TensorFlow and jax2onnx"
	@echo "make lint      check format and style; changes nothing"
	@echo "make docs      build the documentation with the API reference, as a site in site/"
	@echo "make results   compile for TPU; rewrite profiling/results and the tables of README.md and docs/ (half a day, 36 GB with swap)"
	@echo "make lock      update requirements.lock to the newest versions"
	@echo "make clean     remove the environment, the demo's results and the site"

# --without-pip and --python are for systems whose venv module lacks the bundled wheel of pip.
$(INSTALLED): requirements.lock pyproject.toml
	@echo "== Setting up $(ENVIRONMENT) with the versions in requirements.lock (once; about 2 GB)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 15) else f"Python {v[0]}.{v[1]} is outside 3.11 to 3.14; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear --without-pip $(ENVIRONMENT)
	$(PYTHON) -m pip --python $(RUN) install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(PYTHON) -m pip --python $(RUN) install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(INSTALLED)
	@echo "== Demo: pre-training on Fashion-MNIST, fine-tuning on digits, the same from scratch"
	@$(RUN) -m train.demo --workdir=workdirs/demo

test: $(INSTALLED)
	@echo "== Tests (make test-all runs the slow ones too)"
	@$(RUN) -m pytest

test-all: $(INSTALLED)
	@echo "== All tests"
	@$(RUN) -m pytest -m "slow or not slow" -o faulthandler_timeout=7200

# What pip gives a user who asks for the extras, instead of the versions in requirements.lock.
test-formats:
	@echo "== Setting up $(FORMATS) with the newest versions that are allowed (about 3 GB)"
	$(PYTHON) -m venv --clear --without-pip $(FORMATS)
	$(PYTHON) -m pip --python $(FORMATS)/bin/python install --quiet --disable-pip-version-check --editable '.[saved-model,onnx,test]'
	@echo "== Tests of the export, with all formats"
	@$(FORMATS)/bin/python -m pytest tests/nfnet/export

lint: $(INSTALLED)
	@echo "== Formatter and linter"
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .

docs: $(INSTALLED)
	@echo "== Documentation: site/index.html"
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

RESULTS := profiling/results
# Of F7 and F7+ with kernels, which compile in half an hour or more. F7 needs 31 GB, with swap.
LIMITS := --memory_limit_gb=26 --time_limit_seconds=7200
# An interpreter that has TensorFlow, PyTorch and timm: their input pipelines are measured too.
RIVALS_PYTHON ?= $(RUN)

# The first command writes the error bar that all others show. Nothing is compiled twice.
# profiling.gpu looks for a GPU, so there JAX itself chooses the devices.
results: $(INSTALLED)
	@echo "== Estimates and measurements of profiling/results"
	$(RUN) -m profiling.calibrate --json=$(RESULTS)/calibration.json
	$(RUN) -m profiling.core_hours --json=$(RESULTS)/core_hours_reference.json --plot=$(RESULTS)/core_hours_reference.png
	$(RUN) -m profiling.core_hours --kernels=pallas $(LIMITS) --json=$(RESULTS)/core_hours_pallas.json --plot=$(RESULTS)/core_hours_pallas.png
	$(RUN) -m profiling.released_code --json=$(RESULTS)/released_code.json
	$(RUN) -m profiling.generations --json=$(RESULTS)/generations.json
	$(RUN) -m profiling.slices $(LIMITS) --json=$(RESULTS)/slices.json --plot=$(RESULTS)/slices.png
	$(RUN) -m profiling.slices $(LIMITS) --slices=v4:8x8x16 --kernels=pallas --kernels=reference --json=$(RESULTS)/slices_1024.json
	$(RUN) -m profiling.memory --json=$(RESULTS)/memory.json
	$(RUN) -m train.scaling_law --runs=train/published_runs/paper_a_nfnets.csv --runs=train/published_runs/paper_a_finetuned.csv --hold_out_epochs=2 --json=docs/scaling_law/paper_a.json --plots=docs/scaling_law
	$(RUN) -m train.scaling_law --runs=train/small_study/fashion_mnist.csv --hold_out_epochs=4 --json=docs/small_study/fashion_mnist/laws.json --plots=docs/small_study/fashion_mnist
	$(RUN) -m train.choose_checkpoint --finetuned=train/small_study/fashion_mnist.csv --json=docs/small_study/fashion_mnist/choice.json --plot=docs/small_study/fashion_mnist/choice.png
	$(RUN) -m train.scaling_law --runs=train/small_study/cifar10_seed_0.csv --runs=train/small_study/cifar10_seed_1.csv --hold_out_epochs=1 --json=docs/small_study/cifar10/laws.json --plots=docs/small_study/cifar10
	$(RUN) -m train.choose_checkpoint --finetuned=train/small_study/cifar10_seed_0.csv --finetuned=train/small_study/cifar10_seed_1.csv --json=docs/small_study/cifar10/choice.json --plot=docs/small_study/cifar10/choice.png
	$(RUN) -m profiling.vit --json=$(RESULTS)/vit.json
	$(RUN) -m profiling.kernels --kernels=pallas --json=$(RESULTS)/ops.json
	env -u JAX_PLATFORMS $(RUN) -m profiling.gpu --json=$(RESULTS)/gpu.json
	$(RUN) -m profiling.step --variant=F0 --block_execution=unrolled --kernels=pallas --parameter_shards=4 --gradient_dtype=bfloat16 --json=$(RESULTS)/step_f0.json
	$(RUN) -m profiling.both_families --plot=$(RESULTS)/both_families.png
	$(RUN) -m profiling.input_pipeline --python=$(RIVALS_PYTHON) --json=$(RESULTS)/input_pipeline.json
	$(RUN) -m profiling.result_tables

# "fewest" gives one version of each package for all Pythons, since only one set of versions is tested.
lock: $(INSTALLED)
	@$(PYTHON) -m pip --python $(RUN) install --quiet --disable-pip-version-check uv
	@$(RUN) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-annotate --no-header --extra test --extra tpu --extra docs --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(ENVIRONMENT) $(FORMATS) build workdirs site
