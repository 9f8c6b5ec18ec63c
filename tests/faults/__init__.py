"""The fault harness: runs by real processes that are killed, stopped, starved, doubled and lied to. Whatever happens, the
scores are those of an undisturbed run in one process, bit for bit.

``python -m tests.faults --runs 500`` is the long version, ``test_faults.py`` the short one.
"""
