"""Figures: every figure of the kit as a function to plotly (theory.py, results.py), its static twin (static/), and the
report page. Imports theory and the hall only.
"""
