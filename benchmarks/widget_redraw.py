"""How long a slider's move takes: `python benchmarks/widget_redraw.py [RESULTS]`, milliseconds of this process.

RESULTS: a run's folder with results.json, or a sweep's with sweep.json; without it the shipped record. Everything
from the slider's new value to the message that leaves for the browser; what the browser draws is not in it.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

from csrlhf_kit.widgets import explore_penalty, explore_tradeoff

MOVES = 20


def milliseconds(slider) -> tuple[float, float]:
    """(median, longest) CPU milliseconds of `MOVES` moves of one slider."""
    spent, start = [], slider.value
    for place in range(1, MOVES + 1):
        begun = time.process_time()
        slider.value = start * (1 + 0.3 * place / MOVES)
        spent.append(1e3 * (time.process_time() - begun))
    slider.value = start
    return median(spent), max(spent)


def main() -> None:
    """Print a row for each slider."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", metavar="RESULTS")
    results = parser.parse_args().results[:1]
    views = {
        "explore_penalty": explore_penalty(static=False),
        "explore_tradeoff": explore_tradeoff(*results, static=False),
    }
    print(f"{'widget':18} {'slider':10} {'median ms':>10} {'longest ms':>11}")
    for name, view in views.items():
        for slider in view.root.children[0].children:
            if isinstance(slider.value, float):
                typical, longest = milliseconds(slider)
                print(f"{name:18} {slider.description:10} {typical:10.1f} {longest:11.1f}")
        view.close()


if __name__ == "__main__":
    main()
