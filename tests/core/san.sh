#!/bin/sh
# make check-san: see san.py
exec python "$(dirname "$0")/san.py" "$@"
