"""The toy world: its words, requests, answers, jailbreaks, oracle and annotators, and the data made from them.

Random draws and strings only, no torch. Builds on data/ for its records, and on the hall.
"""
