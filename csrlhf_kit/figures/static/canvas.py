"""The page of one figure: its axes with places and ranges, and how everything but traces is drawn on it.

From the JSON of a plotly figure, with its template merged in, to artists on a matplotlib page. One plotly pixel is
one matplotlib point, so that sizes stay the same. Traces are drawn by `traces.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.transforms import IdentityTransform

from csrlhf_kit.errors import UserError
from csrlhf_kit.figures.static.plotly_terms import (
    error_ends,
    first_given,
    fitting_columns,
    floats,
    legend_handle,
    line_look,
    listed,
    merge,
    plain,
    set_ticks,
)
from csrlhf_kit.figures.style import GRID, INK, MUTED


class Canvas:
    """The page of one figure, with its axes and their ranges."""

    def __init__(
        self,
        page: Figure,
        width: int,
        height: int,
        layout: dict,
        data: list[dict],
        drawers: Mapping[str, Callable],
    ) -> None:
        self.drawers = drawers  # by the kind of trace
        self.page, self.width, self.height, self.layout = page, width, height, layout
        margin = {"l": 80, "r": 80, "t": 100, "b": 80, **layout.get("margin", {})}
        self.left, self.right = margin["l"], width - margin["r"]  # the plotting area, in pixels from
        self.bottom, self.top = margin["b"], height - margin["t"]  # the page's lower left corner
        self.traces = [dict(trace) for trace in data if trace.get("visible", True) is True]
        colours = layout.get("colorway") or ["#0072B2"]
        for place, trace in enumerate(self.traces):
            trace["_colour"] = colours[place % len(colours)]
            if trace.get("type", "scatter") not in drawers:
                raise UserError(
                    f"a figure's static twin cannot draw the trace type {trace['type']!r}; "
                    "it draws scatter and bar"
                )
        self.axes: dict[tuple[str, str], Axes] = {}
        self.categories: dict[str, list[str]] = {}
        self.previous: dict[tuple[str, str], tuple[list, list]] = {}
        self._place_bars()
        pairs = dict.fromkeys((t.get("xaxis", "x"), t.get("yaxis", "y")) for t in self.traces)
        for x, y in pairs or {("x", "y"): None}:
            for name in (x, y):
                self.categories.setdefault(name, self._categories(name))
        for x, y in pairs or {("x", "y"): None}:
            self._make_axes(x, y)

    # Where things are

    def axis(self, name: str) -> dict:
        key = f"{name[0]}axis{name[1:]}"
        template = self.layout.get("template", {}).get("layout", {}).get(f"{name[0]}axis", {})
        return merge(template, self.layout.get(key, {}))

    def numbers(self, values: Any, axis: str) -> list[float]:
        """`values` as floats: categories by their position, gaps as NaN."""
        names = self.categories.get(axis) or []
        found = (names.index(v) if isinstance(v, str) else v for v in (values if values is not None else ()))
        return [math.nan if v is None else float(v) for v in found]

    def _categories(self, axis: str) -> list[str]:
        found: dict[str, None] = {}
        for trace in self.traces:
            if trace.get(f"{axis[0]}axis", axis[0]) == axis:
                found.update(dict.fromkeys(v for v in listed(trace.get(axis[0])) if isinstance(v, str)))
        return list(found)

    def _range(self, name: str) -> tuple[float, float]:
        """The axis's own range, or that of its data (and of the axes matched to it) plus 5%."""
        axis = self.axis(name)
        log = axis.get("type") == "log"
        if axis.get("range"):
            low, high = axis["range"]
            return (10.0**low, 10.0**high) if log else (float(low), float(high))
        leader = axis.get("matches", name)
        if leader != name and self.axis(leader).get("range"):
            return self._range(leader)
        letter, values = name[0], []
        for trace in self.traces:
            own = trace.get(f"{letter}axis", letter)
            if leader in (own, self.axis(own).get("matches")):
                values += self._extent(trace, own)
        values = [v for v in values if math.isfinite(v) and not (log and v <= 0)] or [1.0, 10.0]
        from_zero = axis.get("rangemode") == "tozero"
        low, high = min(values + [0.0] * from_zero), max(values)
        if log:
            room = (high / low) ** 0.04 if high > low else 2.0
            return low / room, high * room
        room = 0.05 * (high - low) or 0.5
        return low - room * (low < 0 or not from_zero), high + room

    def _extent(self, trace: dict, name: str) -> list[float]:
        letter = name[0]
        if trace.get("type") == "bar":
            if letter == trace["_value"]:
                lengths = self.numbers(trace[letter], name)
                ends = [b + v for b, v in zip(trace["_base"], lengths, strict=True)]
                return [*trace["_base"], *ends, *error_ends(trace, letter, ends)]
            return [p + s * trace["_thick"] for p in trace["_place"] for s in (-0.75, 0.75)]
        values = self.numbers(trace.get(letter), name)
        return [*values, *error_ends(trace, letter, values)]

    def _make_axes(self, x: str, y: str) -> None:
        wide, tall = self.right - self.left, self.top - self.bottom
        across, up = self.axis(x), self.axis(y)
        x0, x1 = across.get("domain", (0, 1))
        y0, y1 = up.get("domain", (0, 1))
        box = [self.left + x0 * wide, self.bottom + y0 * tall, (x1 - x0) * wide, (y1 - y0) * tall]
        scale = [self.width, self.height] * 2
        ax = self.page.add_axes([value / whole for value, whole in zip(box, scale, strict=True)])
        ax.patch.set_visible(False)
        self.axes[x, y] = ax
        for axis, settings, name, length in ((ax.xaxis, across, x, box[2]), (ax.yaxis, up, y, box[3])):
            letter = name[0]
            low, high = self._range(name)
            if settings.get("type") == "log":
                getattr(ax, f"set_{letter}scale")("log")
            getattr(ax, f"set_{letter}lim")(low, high)
            hidden = settings.get("showticklabels") is False
            set_ticks(axis, settings, self.categories[name], (low, high), length, hidden)
            color = settings.get("tickcolor", MUTED)
            size = settings.get("tickfont", {}).get("size", 12)
            marks = settings.get("ticklen", 4) if settings.get("ticks") == "outside" else 0
            ax.tick_params(letter, which="major", length=marks, color=color, labelsize=size, labelcolor=INK)
            ax.tick_params(letter, which="minor", length=0)
            if angle := settings.get("tickangle"):  # plotly counts clockwise, matplotlib the other way
                for label in axis.get_ticklabels():
                    label.set(rotation=-angle, ha="right" if angle < 0 else "left", rotation_mode="anchor")
            if settings.get("showgrid", True):
                axis.grid(True, which="major", color=settings.get("gridcolor", GRID), linewidth=0.8)
            title = settings.get("title", {})
            if title.get("text"):
                axis.set_label_text(
                    plain(title["text"]), fontsize=title.get("font", {}).get("size", 13), color=INK
                )
        ax.set_axisbelow(True)
        for side, settings in (("left", up), ("bottom", across), ("right", {}), ("top", {})):
            ax.spines[side].set_visible(bool(settings.get("showline")))
            ax.spines[side].set_color(settings.get("linecolor", MUTED))

    def pixel(self, reference: str, value: Any) -> float:
        """One coordinate of a shape or an annotation in pixels; `reference` as plotly's xref or yref."""
        name, _, domain = reference.partition(" ")
        along = 0 if reference == "x" or name[0] == "x" else 1
        pair, ax = next((p, a) for p, a in self.axes.items() if p[along] == name)
        if domain:
            box = ax.get_position()
            low, high = ((box.x0, box.x1), (box.y0, box.y1))[along]
            return (low + float(value) * (high - low)) * (self.width, self.height)[along]
        [number] = self.numbers([value], pair[along])
        point = [ax.get_xlim()[0], ax.get_ylim()[0]]
        point[along] = number
        return float(ax.transData.transform(point)[along])

    def pixel_xy(self, item: dict, x: Any, y: Any) -> tuple[float, float]:
        """A point of a shape or an annotation in pixels from the page's lower left corner."""
        spans = ((self.left, self.right), (self.bottom, self.top))
        pages = (self.width, self.height)
        point = []
        for along, (letter, value) in enumerate((("x", x), ("y", y))):
            reference = item.get(f"{letter}ref", letter)
            if reference == "paper":
                low, high = spans[along]
                point.append(low + float(value) * (high - low))
            elif reference == "container":
                point.append(float(value) * pages[along])
            else:
                point.append(self.pixel(reference, value))
        return point[0], point[1]

    def _place_bars(self) -> None:
        """Give each bar trace its places, thickness and bases, as plotly's barmode arranges them."""
        bars = [trace for trace in self.traces if trace.get("type") == "bar"]
        mode = self.layout.get("barmode", "group")
        for trace in bars:
            trace["_value"] = "x" if trace.get("orientation") == "h" else "y"
        for pair in dict.fromkeys((t.get("xaxis", "x"), t.get("yaxis", "y")) for t in bars):
            group = [t for t in bars if (t.get("xaxis", "x"), t.get("yaxis", "y")) == pair]
            share = (1 - self.layout.get("bargap", 0.2)) / (len(group) if mode == "group" else 1)
            heights: dict[tuple[float, bool], float] = {}
            for index, trace in enumerate(group):
                along, name = ("y", pair[1]) if trace["_value"] == "x" else ("x", pair[0])
                self.categories.setdefault(name, self._categories(name))
                places = self.numbers(trace[along], name)
                gaps = sorted({b - a for a, b in itertools.pairwise(places) if b > a})
                unit = gaps[0] if gaps else 1.0
                shift = (index - (len(group) - 1) / 2) * share * unit if mode == "group" else 0.0
                trace["_thick"] = first_given(trace.get("width"), share * unit)
                trace["_place"] = [place + shift for place in places]
                lengths = floats(trace[trace["_value"]])
                trace["_base"] = [0.0] * len(lengths)
                if mode in ("stack", "relative"):
                    for i, (place, length) in enumerate(zip(places, lengths, strict=True)):
                        trace["_base"][i] = heights.get((place, length < 0), 0.0)
                        heights[place, length < 0] = trace["_base"][i] + length

    # What is drawn

    def draw(self, trace: dict) -> None:
        """Draw one trace on its axes."""
        pair = trace.get("xaxis", "x"), trace.get("yaxis", "y")
        kind = trace.get("type", "scatter")
        self.drawers[kind](self, self.axes[pair], trace, pair)

    def draw_shape(self, shape: dict) -> None:
        """Draw a line at its place in pixels, clipped to its axes if it has any. UserError for other shapes."""
        kind = shape.get("type", "rect")  # plotly's default
        if kind != "line":
            raise UserError(f"a figure's static twin cannot draw a {kind!r} shape; it draws lines")
        first = self.pixel_xy(shape, shape["x0"], shape["y0"])
        second = self.pixel_xy(shape, shape["x1"], shape["y1"])
        look = line_look(shape.get("line") or {}, INK, first_given(shape.get("opacity"), 1.0))
        line = Line2D(*zip(first, second, strict=True), **look)
        line.set_transform(IdentityTransform())
        line.set_zorder({"below": 0.2}.get(shape.get("layer"), 2.2))
        names = [shape.get("xref", "x").split()[0], shape.get("yref", "y").split()[0]]
        inside = [ax for pair, ax in self.axes.items() if set(names) - {"paper"} <= set(pair)]
        if inside and names != ["paper", "paper"]:
            line.set_clip_path(inside[0].patch)
            inside[0].add_artist(line)
            line.set_clip_path(inside[0].patch)
        else:
            self.page.add_artist(line)

    def draw_annotation(self, note: dict) -> None:
        """Write an annotation, with its arrow if it has one."""
        at = self.pixel_xy(note, note.get("x", 0.5), note.get("y", 0.5))
        at = at[0] + note.get("xshift", 0), at[1] + note.get("yshift", 0)
        font = note.get("font") or {}
        arrow = note.get("showarrow", True)
        text = at[0] + note.get("ax", -10 if arrow else 0) * arrow, at[1] - note.get("ay", -30) * arrow
        self.page.text(
            text[0] / self.width,
            text[1] / self.height,
            plain(note.get("text")),
            ha={"left": "left", "right": "right"}.get(note.get("xanchor"), "center"),
            va={"top": "top", "bottom": "bottom"}.get(note.get("yanchor"), "center"),
            fontsize=font.get("size", 12),
            color=font.get("color", INK),
            zorder=4,
        )
        if arrow:
            shaft = FancyArrowPatch(
                text, at, arrowstyle="-|>" if note.get("arrowhead", 1) else "-", mutation_scale=9,
                shrinkA=6, shrinkB=2, color=note.get("arrowcolor", MUTED), linewidth=1,
            )  # fmt: skip
            shaft.set_transform(IdentityTransform())
            shaft.set_zorder(3.5)
            self.page.add_artist(shaft)

    def draw_legend(self) -> None:
        """Draw the legend where the layout says, by default under the plot, wrapped to the page's width."""
        named = [t for t in self.traces if t.get("name") and t.get("showlegend", True)]
        wanted = self.layout.get(
            "showlegend", len(self.traces) > 1 or any(t.get("showlegend") for t in named)
        )
        if not named or not wanted:
            return
        settings = self.layout.get("legend") or {}
        handles, labels = [legend_handle(trace) for trace in named], [plain(trace["name"]) for trace in named]
        size = (settings.get("font") or {}).get("size", 12)
        flat = settings.get("orientation") == "h"
        wide = self.right - self.left
        columns = fitting_columns(labels, size, wide) if flat else 1
        order = [i for start in range(columns) for i in range(start, len(labels), columns)]  # row by row
        handles, labels = [handles[i] for i in order], [labels[i] for i in order]
        at = self.pixel_xy(
            {"xref": settings.get("xref", "paper"), "yref": settings.get("yref", "paper")},
            settings.get("x", 0 if flat else 1.02),
            settings.get("y", -0.1 if flat else 1),
        )
        vertical = {"top": "upper", "middle": "center", "bottom": "lower"}[
            settings.get("yanchor", "bottom" if at[1] < self.height / 3 else "top")
        ]
        horizontal = {"left": "left", "right": "right", "center": "center"}[settings.get("xanchor", "left")]
        self.page.legend(
            handles, labels,
            loc="center" if (vertical, horizontal) == ("center", "center") else f"{vertical} {horizontal}",
            bbox_to_anchor=(at[0] / self.width, at[1] / self.height), ncols=columns, frameon=False,
            fontsize=size, labelcolor=INK, handlelength=2.6, columnspacing=1.4, borderaxespad=0.3,
        )  # fmt: skip

    def draw_title(self) -> None:
        """Draw the title and its subtitle, top left."""
        title = self.layout.get("title") or {}
        left, top = 12, self.height - 12
        for part in (title, title.get("subtitle") or {}):
            words = plain(part.get("text"))
            if words:
                size = (part.get("font") or {}).get("size", 16)
                colour = (part.get("font") or {}).get("color", INK)
                weight = (part.get("font") or {}).get("weight", "normal")
                self.page.text(
                    left / self.width, top / self.height, words, ha="left", va="top", fontsize=size,
                    color=colour, weight=weight, linespacing=1.2,
                )  # fmt: skip
                top -= (size * 1.25) * (words.count("\n") + 1) + 4
