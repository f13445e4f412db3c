"""The -o options and config.toml, read into frozen values.

Public: file, mount_flags, option_text, options, render.
"""
