"""Arguments, printing and exit statuses.

Public: main.
"""
