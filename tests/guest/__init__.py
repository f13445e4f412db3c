"""What needs a kernel with NBD: run inside the guest that tests/support/vm.py boots."""
