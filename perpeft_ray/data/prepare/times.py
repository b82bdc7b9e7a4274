"""Converts times in any usual text form to whole numbers, by SQL; the data show the form.

Dates become nanoseconds since 1970 (UTC without a zone); numbers stay unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from perpeft_ray.data.prepare.database import Database, quoted
from perpeft_ray.errors import InputError

TABLE, TEXT = "read_interactions", "time_text"
"""The table, and its column of times, that all functions here read."""
_SAMPLE = 10_000
_CLOCK = r"(?:[T ,]\s*(\d{1,2}):(\d{2})(?::(\d{2}))?(?:[.,](\d{1,9}))?\s*(?:([AaPp])\.?[Mm]\.?)?)?"
_ZONE = r"\s*(Z|[A-Za-z]+/[A-Za-z_]+|[A-Z]{3,4}|[+-]\d{2}(?::?\d{2})?)?"
_WEEKDAY = r"^(?:[A-Za-z]{3,9}\.?,?\s+)?"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NUMBER = r"[+-]?\d+(?:[.,]\d+)?(?:[eE]\+?\d+)?"
_COMPACT = r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])(?:\d{6})?"
_NUMERIC = r"^(\d{1,2})[-/.](\d{1,2})[-/.](\d{4}|\d{2})"


@dataclass(frozen=True)
class _Form:
    """A form of dates: a pattern without clock and zone, and the meaning of its groups."""

    words: str
    pattern: str
    groups: tuple[str, str, str]
    clock: str = _CLOCK


_FORMS = {
    "year": _Form("year first", r"^(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})", ("y", "m", "d")),
    "day": _Form("day first", _NUMERIC, ("d", "m", "y")),
    "month": _Form("month first", _NUMERIC, ("m", "d", "y")),
    "compact": _Form(
        "year, month, day",
        r"^(\d{4})(\d{2})(\d{2})",
        ("y", "m", "d"),
        r"(?:[T ]?(\d{2}):?(\d{2}):?(\d{2})?(?:[.,](\d{1,9}))?([ap])?)?",
    ),
    "day name": _Form(
        "day, name of the month",
        _WEEKDAY + r"(\d{1,2})[-\s.]*([A-Za-z]{3,9})\.?[-\s,]+(\d{4}|\d{2})",
        ("d", "m", "y"),
    ),
    "name day": _Form(
        "name of the month, day",
        _WEEKDAY + r"([A-Za-z]{3,9})\.?\s+(\d{1,2}),?\s+(\d{4})",
        ("m", "d", "y"),
    ),
}
_UNITS = {"seconds": (1e8, 10**9), "milliseconds": (1e11, 10**6), "microseconds": (1e14, 10**3),
          "nanoseconds": (1e17, 1)}  # fmt: skip
"""Units of numbers since 1970: the smallest number in the unit, and its nanoseconds."""


@dataclass(frozen=True)
class Times:
    """How to convert a text column to whole numbers."""

    words: str
    """How the form was understood, with an example."""
    value: str
    """SQL of the int64, null for text of another form."""
    unit: int | None
    """Nanoseconds per unit; None for numbers that are not times since 1970."""

    def shown(self, value: int) -> str:
        """An int64 for people, in UTC."""
        if self.unit is None:
            return f"{value:,}"
        seconds = value * self.unit // 10**9
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
        return moment.strftime("%Y-%m-%d %H:%M:%S")


def understand(database: Database, where: str, date_format: str | None) -> Times:
    """Find out the form of the times in the column `TEXT` of `TABLE`, ignoring nulls.

    `where` names the user's column in messages. `date_format`: for strptime, instead of a guess.
    Raises InputError for an unknown form, for dates whose day and month are ambiguous, and for
    numbers in two units.
    """
    (example,) = database.row(f"SELECT first({TEXT}) FROM {TABLE} WHERE {TEXT} IS NOT NULL")
    if example is None:
        raise InputError(f"{where} must have times, but has none")
    sample = f"(SELECT {TEXT} FROM {TABLE} WHERE {TEXT} IS NOT NULL LIMIT {_SAMPLE})"
    if date_format is not None:
        value = f"try(epoch_us(try_strptime({TEXT}, {quoted(date_format)})) * 1000)"
        return _shown(database, sample, Times(date_format, value, 1))
    patterns = {name: form.pattern for name, form in _FORMS.items() if name != "month"}
    patterns |= {"number": f"^{_NUMBER}$", "compact": f"^{_COMPACT}$|^\\d{{8}}T\\d"}
    counts = ", ".join(
        f"count(*) FILTER (regexp_matches({TEXT}, {quoted(pattern)}))"
        for pattern in patterns.values()
    )
    matched = dict(zip(patterns, database.row(f"SELECT {counts} FROM {sample}"), strict=True))
    if matched["compact"] < max(matched.values()):
        del matched["compact"]  # numbers, some of which look like dates
    best = max(matched, key=lambda name: (matched[name], name != "number"))
    if not matched[best]:
        raise InputError(
            f"{where} must have times of a known form, but has {example[:80]!r}; give "
            "--date-format, such as %d.%m.%Y, or --time two columns, such as 'date, hour'"
        )
    if best == "number":
        return _shown(database, sample, _numbers(database, where))
    if best == "day":
        best = _day_or_month(database, where)
    return _shown(database, sample, _dates(_FORMS[best]))


def _dates(form: _Form) -> Times:
    """SQL of a form's dates, through ISO, which DuckDB reads."""
    names = [*form.groups, "h", "n", "s", "f", "p", "z"]
    groups = "[" + ", ".join(map(quoted, names)) + "]"
    found = f"regexp_extract({TEXT}, {quoted(form.pattern + form.clock + _ZONE + '$')}, {groups})"
    months = "[" + ", ".join(map(quoted, _MONTHS)) + "]"
    iso = (
        "CASE length(x.y) WHEN 4 THEN x.y WHEN 2 THEN if(x.y < '70', '20', '19') || x.y END || '-'"
        f" || if(x.m[1] BETWEEN '0' AND '9', x.m, list_position({months}, lower(x.m[:3]))::VARCHAR)"
        " || '-' || x.d || ' ' || CASE WHEN x.h = '' THEN '0' WHEN x.p = '' THEN x.h"
        " ELSE (try_cast(x.h AS INT) % 12 + if(lower(x.p) = 'p', 12, 0))::VARCHAR END"
        " || ':' || coalesce(nullif(x.n, ''), '00') || ':' || coalesce(nullif(x.s, ''), '00')"
        " || if(x.f = '', '', '.' || x.f)"
        r" || regexp_replace(x.z, '^([+-]\d\d)(\d\d)$', '\1:\2')"
    )
    # A list of one, so that the pattern is matched once.
    moment = f"try_cast(list_transform([{found}], lambda x: {iso})[1] AS TIMESTAMPTZ)"
    if form.words == "year first":
        plain = f"if({TEXT}[1] BETWEEN '0' AND '9', try_cast({TEXT} AS TIMESTAMPTZ), NULL)"
        moment = f"coalesce({plain}, {moment})"
    # TIMESTAMPTZ has microseconds; finer digits come from the text.
    finer = (
        f"if(length({TEXT}) > 26, coalesce(try_cast(rpad(regexp_extract({TEXT}, "
        r"'[.,]\d{6}(\d{1,3})', 1), 3, '0') AS BIGINT), 0), 0)"
    )
    return Times(form.words, f"try(epoch_us({moment}) * 1000 + {finer})", 1)


def _day_or_month(database: Database, where: str) -> str:
    """`day` or `month` first: the form that reads dates which the other does not."""
    only_day, only_month, any_one = database.row(
        f"SELECT first({TEXT}) FILTER (x.a > '12' AND x.b <= '12'), "
        f"first({TEXT}) FILTER (x.b > '12' AND x.a <= '12'), first({TEXT}) FROM "
        f"(SELECT {TEXT}, list_transform([regexp_extract({TEXT}, {quoted(_NUMERIC)}, "
        "['a', 'b', 'y'])], lambda x: {'a': lpad(x.a, 2, '0'), 'b': lpad(x.b, 2, '0'), 'y': x.y})"
        f"[1] AS x FROM {TABLE}) WHERE x.y <> ''"
    )
    if only_day is not None and only_month is not None:
        raise InputError(
            f"{where} must have dates of one order, but {only_day!r} has the day first and "
            f"{only_month!r} the month; write them as 2024-01-31"
        )
    if only_day is None and only_month is None:
        raise InputError(
            f"{where} must have a date that shows whether day or month comes first, but none like "
            f"{any_one!r} does; give --date-format, such as %d/%m/%Y"
        )
    return "month" if only_day is None else "day"


def _numbers(database: Database, where: str) -> Times:
    number = (
        f"if(regexp_matches({TEXT}, {quoted(f'^{_NUMBER}$')}), "
        f"try_cast(replace({TEXT}, ',', '.') AS DECIMAL(38, 9)), NULL)"
    )
    limits = [low for low, _ in _UNITS.values()]
    units = ", ".join(
        f"first({TEXT}) FILTER (abs(x) >= {low:.0f} AND abs(x) < {high:.0f})"
        for low, high in zip(limits, [*limits[1:], 1e28], strict=True)
    )
    fractions, *firsts = database.row(
        f"SELECT coalesce(bool_or(x <> floor(x)), false), {units} "
        f"FROM (SELECT {TEXT}, {number} AS x FROM {TABLE})"
    )
    there = {unit: first for unit, first in zip(_UNITS, firsts, strict=True) if first is not None}
    if len(there) > 1:
        raise InputError(
            f"{where} must have times of one unit, but has "
            + " and ".join(f"{first} ({unit})" for unit, first in there.items())
        )
    scale = 10**6 if fractions and ("seconds" in there or not there) else 1
    value = f"try(CAST(floor({number} * {scale}) AS BIGINT))"
    if not there:
        return Times("numbers, in order", value, None)
    (unit,) = there
    words = f"{unit} since 1970" + (", fractions kept" if scale > 1 else "")
    return Times(words, value, _UNITS[unit][1] // scale)


def _shown(database: Database, sample: str, times: Times) -> Times:
    """The times, with an example in the words."""
    row = database.row(
        f"SELECT first({TEXT}) FILTER (t IS NOT NULL), first(t) FILTER (t IS NOT NULL) "
        f"FROM (SELECT {TEXT}, {times.value} AS t FROM {sample})"
    )
    if times.unit is None or row[0] is None:
        return times
    return replace(times, words=f"{times.words}: {row[0]!r} is {times.shown(row[1])} UTC")
