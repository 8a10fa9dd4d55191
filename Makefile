# Everything runs in .venv, which is made and filled on first use and again when pyproject.toml changes.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
SCENARIOS := roofline channels gaps few scattered size cache growth prediction qemu pauses instants work first load clone \
	fanout touch verify starts libvirt published_series published_pauses
RESULTS := $(wildcard $(SCENARIOS:%=bench/results/%.json))
SHOWN := $(shell grep -o 'pictures/[a-z0-9-]*\.png' docs/experiments.md | sed 's|pictures/\(.*\)\.png|\1|')
# Not of a QEMU but of us: signals, kills, and swap, which cost the most time; and what other tests of the same QEMU show.
OURS := boot_signals guests kill others swap reach disks damage
VERSIONED := tests/core/test_capabilities.py $(filter-out $(OURS:%=tests/qemu/test_%.py),$(wildcard tests/qemu/test_*.py))

# A part is one process of pytest, and parts run side by side, one more than there are processors, because many tests wait
# for a disk or for a QEMU. What a test forks is a copy of its process: that is why it collects no more than it runs. Those
# that take longest come first; what no other part names is in `others`.
files = $(wildcard $(patsubst %,tests/%.py,$(1)))
PART_machines := $(call files,qemu/test_machines qemu/test_targets qemu/test_other_targets qemu/test_run_state)
PART_boot := $(call files,qemu/test_boot_* qemu/test_command_line qemu/test_load qemu/test_verify_load)
PART_captures := $(call files,qemu/test_qmp_save qemu/test_save qemu/test_snapshot qemu/test_snapshot_linux qemu/test_try_capture)
PART_clones := $(call files,qemu/test_clone* qemu/test_identity qemu/test_disks_of_guests qemu/test_guests* qemu/test_restore)
PART_disks := $(call files,qemu/test_disks qemu/test_overlays qemu/test_clean)
PART_drawing := $(call files,experiments/test_pictures experiments/test_report)
PART_experiments := $(filter-out $(PART_drawing),$(wildcard tests/experiments/test_*.py))
PART_command := $(call files,cli/test_signals cli/test_round_trips cli/test_demo cli/test_imports)
PART_cli := $(filter-out $(PART_command),$(wildcard tests/cli/test_*.py))
PART_libvirt := tests/libvirt
PART_wire := tests/wire
PART_snapshots := $(call files,engine/snapshot/test_* engine/test_write_protect engine/test_torn engine/test_rounds)
PART_reading := $(call files,$(addprefix engine/test_,restore verify diff clone_stream add_trailer read_ahead))
PART_saving := $(filter-out $(PART_snapshots) $(PART_reading),$(wildcard tests/engine/test_*.py))
PART_host := tests/host
PART_api := tests/machines tests/test_api.py
PART_format := tests/core tests/format
PART_calls := tests/matrix/test_every_call.py
PART_edits := tests/matrix/test_edits.py
PART_bytes := tests/matrix/test_any_bytes.py
PART_guided := tests/matrix/test_guided_bytes.py
PART_any := $(call files,matrix/test_any_files matrix/test_any_answers)
PART_hostile := $(call files,matrix/test_against_qemu matrix/test_hostile_folders matrix/test_read_only)
PART_moments := tests/matrix/test_any_moment.py
PART_pairs := $(call files,matrix/test_two_faults matrix/test_calls_in_place)
PART_storage := $(filter-out $(foreach part,calls edits bytes guided any hostile moments pairs,$(PART_$(part))),$(wildcard tests/matrix/test_*.py))
PART_kill := $(call files,qemu/test_kill* qemu/test_damage qemu/test_swap qemu/test_records)
PART_hazards := $(call files,qemu/test_snapshot_hazards)
MATRIX := bytes edits any moments calls pairs guided kill storage hazards hostile
ROOMS := snapshots saving reading host api format
NAMED := machines captures disks libvirt boot clones drawing experiments command cli wire $(ROOMS)
TESTS := $(wildcard tests/test_*.py tests/*/test_*.py tests/*/*/test_*.py)
PART_others := $(filter-out $(foreach part,$(NAMED) $(MATRIX),$(PART_$(part)) $(PART_$(part):%=%/%)),$(TESTS))
PARTS := machines captures disks libvirt others $(filter-out machines captures disks libvirt,$(NAMED))
in_parts = echo "$(words $(1)) parts, $$(($$(nproc) + 1)) at a time; each prints its lines when it is done"; $(MAKE) --no-print-directory --keep-going --output-sync=target --jobs=$$(($$(nproc) + 1)) $(1:%=part-%) OPTIONS='$(2)' \
	| $(BIN)/python tests/closing_line.py

# What was compiled, and rewritten for pytest, stays so for the next process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: $(PARTS:%=part-%) $(MATRIX:%=part-%) help demo test matrix test-fast test-qemu soak check format bench bench-pictures bench-host bench-prediction bench-micro clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/run.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

.venv/test.stamp: .venv/run.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@! pkg-config --exists libvirt || $(BIN)/pip install --quiet --disable-pip-version-check --editable '.[libvirt]' \
		|| echo "libvirt-python cannot be built here: tests that need it will say so"
	@$(BIN)/pip install --quiet --disable-pip-version-check --only-binary atheris --editable '.[fuzz]' \
		|| echo "there is no atheris for this Python: tests that need it will say so"
	@touch $@

.venv/check.stamp: .venv/test.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	@touch $@

demo: .venv/run.stamp ## run the main job on the built-in guest
	@$(BIN)/python -m parallel_fixedram demo

test: .venv/test.stamp ## run every test this machine can run, but for the fault matrix
	@$(call in_parts,$(PARTS))

matrix: .venv/test.stamp ## run the fault matrix: calls fail, processes are killed, power is cut, storage lies (docs/reliability.md)
	@$(call in_parts,$(MATRIX))

test-fast: .venv/test.stamp ## run the tests of the package's rooms: no QEMU, no faults, no command, few examples of each
	@$(call in_parts,$(ROOMS),--hypothesis-profile=quick -m "not slow and not qemu")

$(PARTS:%=part-%) $(MATRIX:%=part-%): part-%:
	@$(BIN)/python -m pytest -q $(OPTIONS) $(PART_$*)

test-qemu: .venv/test.stamp ## run the tests whose subject is what a QEMU does, with the first QEMU in PATH
	@$(BIN)/python -m pytest -q -n auto --dist worksteal $(VERSIONED)

soak: .venv/test.stamp ## run every test with many more examples, and every fault at every place; HOURS=8: the fault matrix, with new seeds, for so long
ifdef HOURS
	@end=$$(($$(date +%s) + $$($(PYTHON) -c 'print(int($(HOURS) * 3600))'))); \
	until [ $$(date +%s) -ge $$end ]; do \
		export PARALLEL_FIXEDRAM_TEST_SEED=$$RANDOM$$RANDOM; echo "seed $$PARALLEL_FIXEDRAM_TEST_SEED"; \
		$(call in_parts,$(MATRIX)) || exit 1; \
	done
else
	@$(call in_parts,$(MATRIX) $(PARTS),--hypothesis-profile=soak --timeout 3600)
endif

check: .venv/check.stamp ## lint, format check, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: .venv/test.stamp ## run all scenarios but smoke into bench/results (hours, as bench list says; root, fio, QEMU, libvirtd, a quiet machine)
	$(BIN)/python -m parallel_fixedram bench run $(SCENARIOS) --results bench/results --overwrite

bench-pictures: .venv/test.stamp ## draw bench/results into bench/pictures and bench/report.html; docs/pictures gets what the docs show
	$(BIN)/python -m parallel_fixedram bench pictures $(RESULTS) --folder bench/pictures
	$(BIN)/python -m parallel_fixedram bench report $(RESULTS) --output bench/report.html
	mkdir -p docs/pictures
	cp -t docs/pictures $(SHOWN:%=bench/pictures/%.png)

bench-host: .venv/test.stamp ## what unwritten disks and RAM in swap cost a guest that is saved (needs root and QEMU)
	$(BIN)/python bench/disks_and_swap.py

bench-prediction: .venv/test.stamp ## measure how far predictions are from measurements, and print the table (10 minutes; root, fio)
	$(BIN)/python -m parallel_fixedram bench run prediction --results bench/results --overwrite
	$(BIN)/python bench/predictions.py bench/results/prediction.json

bench-micro: .venv/test.stamp ## time the inner loops
	$(BIN)/python -m pytest bench --benchmark-enable --benchmark-only --benchmark-columns=min,median,max,rounds

format: .venv/check.stamp ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the other targets made
	rm -rf .venv build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache
