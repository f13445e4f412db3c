# Thin names for commands that anyone can run by hand. On a fresh Debian 12 with python3 (3.11 or newer), as root, each
# target installs what it needs: Debian packages from main and bookworm-security (the 6.12 kernel that the tests boot is
# in the latter), and Python packages into .venv by pip, from wherever the machine's pip is set up to look.
# PYTHON=... chooses the interpreter, TESTS=... what pytest runs: `make test TESTS='tests/export/test_serve.py -x'`.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?=
# Two processes, since tests wait more than they compute, and one of them for the guests at first; file by file, so that
# what a file's tests share is made once; and as conftest.py orders them.
ALL := -n 2 --dist loadfile --no-loadscope-reorder

BUILD := gcc libc6-dev zlib1g-dev
# libnbd-bin brings nbdfuse, nbdcopy and nbdinfo; qemu-system-common virtiofsd
DEMO := $(BUILD) libnbd-bin mount
# erofs-utils is a judge of what we make, and makes what others make
TEST := $(DEMO) bubblewrap busybox-static erofs-utils clang-format-14 containerd cpio cryptsetup-bin docker-registry fio iproute2 kmod mandoc linux-image-6.12-cloud-amd64 mmdebstrap nginx-light openssl prometheus podman qemu-system-common \
	qemu-system-x86 qemu-utils runc skopeo stargz-snapshotter systemd-container umoci user-mode-linux
BENCH := $(TEST) apache2-utils curl nbd-client nbdkit valgrind

.PHONY: demo deb man test unit check check-san soak bench clean
.DELETE_ON_ERROR:

# $(call apt,PACKAGES): installs those that are missing; asks the network for nothing when there is none.
define apt
	@missing=$$(for package in $(1); do \
	  [[ $$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null) == installed ]] || echo $$package; done); \
	if [[ -n $$missing ]]; then \
	  echo "installing" $$missing; export DEBIAN_FRONTEND=noninteractive; \
	  apt-get -q -o DPkg::Lock::Timeout=300 update && \
	  apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $$missing; \
	fi
endef

demo: $(VENV)/ready
	$(call apt,$(DEMO))
	$(BIN)/python demo/demo.py

test: check
	$(call apt,$(TEST))
	$(BIN)/python -m pytest $(or $(TESTS),$(ALL))

# What needs neither root nor Debian's packages, but for a compiler: in under a minute.
unit: $(VENV)/ready
	$(BIN)/python -m pytest -m 'not system' $(TESTS)

check: $(VENV)/ready
	$(call apt,clang-format-14)
	clang-format-14 --dry-run --Werror csrc/*.h csrc/*/*.[ch]
	CI=true $(BIN)/python setup.py -q build_ext --force --build-lib=build/check --build-temp=build/check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

check-san: $(VENV)/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" tests/core/san.sh

soak: $(VENV)/ready
	$(call apt,$(TEST))
	$(BIN)/python -m pytest -s tests/system/soak.py

bench: $(VENV)/ready
	$(call apt,$(BENCH))
	$(BIN)/python -m pytest bench
	$(BIN)/python bench/instructions.py
	$(BIN)/python bench/compare.py

# dist/pyerofs_VERSION_ARCHITECTURE.deb, for Debian 12 and newer
deb: $(VENV)/ready
	$(call apt,dpkg-dev)
	tools/deb.sh dist

man: $(VENV)/ready
	$(BIN)/python -m tools.man build/man
	$(BIN)/python -m tools.completion > build/pyerofs.bash-completion

clean:
	rm -rf $(VENV) build dist *.egg-info pyerofs/_core.*so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +

# The package, editable, with its tools; the C core is compiled again when its sources change. Debian's own python3
# comes without ensurepip and headers: they are two packages more.
$(VENV)/ready: pyproject.toml setup.py $(wildcard csrc/*.py csrc/*.h csrc/*/*.c csrc/*/*.h)
	$(call apt,$(BUILD) $(shell $(PYTHON) -c 'import os, sys, sysconfig; \
	  debian = sys.base_prefix == "/usr"; print("python3-venv python3-dev" if debian else "")'))
	[[ -x $(BIN)/python ]] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
