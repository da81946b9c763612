"""Recipes: one file per command, their options in options.py; experiments/ and claims/ are commands of several files.

Imports every room below, and no recipe imports another; cli.py names their options and functions.
"""
