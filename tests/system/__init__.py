"""Commands and processes as users have them, on this machine; test_kernel.py shows those of tests/guest."""
