"""The -o options and config.toml, read into frozen values.

Public: file, kept, mount_flags, option_edits, option_text, options, render.
"""
