"""JSONPath over documents: jsonpath-rfc9535 reads a path and finds its matches, this module sees to it that no path can take for ever.

Every value that is looked at counts, and at a limit the path is refused; what a path finds, and how much it looks at, follows from path and
document alone. The library's own hooks are what is used: a parser and an environment of one's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from jsonpath_rfc9535 import (
    NOTHING,
    JSONPathEnvironment,
    JSONPathError,
    JSONPathNode,
    JSONPathNodeList,
    Parser,
)
from jsonpath_rfc9535.filter_expressions import (
    ComparisonExpression,
    Expression,
    FilterContext,
    FilterExpression,
    IntegerLiteral,
    RelativeFilterQuery,
    RootFilterQuery,
)
from jsonpath_rfc9535.function_extensions import Count, Length, Value
from jsonpath_rfc9535.query import JSONPathQuery
from jsonpath_rfc9535.segments import JSONPathChildSegment, JSONPathRecursiveDescentSegment, JSONPathSegment
from jsonpath_rfc9535.selectors import FilterSelector, NameSelector
from jsonpath_rfc9535.tokens import TokenStream

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError
from vecmem.store.keyspace.json_value import STRING_CHARACTERS_PER_STEP, equal

PATHS_KEPT: Final = 1_024
"""Compiled paths; each takes a few kilobytes."""
SKIPPED_PER_VISIT: Final = 8
"""Values that are passed over, as a descent does with all that has nothing in it, in the time that one takes to be looked at."""
REFUSED_FUNCTIONS: Final = frozenset({"match", "search"})


class Search:
    """One evaluation of a path: the document, and how many values may still be looked at."""

    __slots__ = ("document", "visits_left")

    def __init__(self, document: Any, visits: int) -> None:
        self.document = document
        self.visits_left = visits

    def spend(self, count: int) -> None:
        """Count values that are about to be looked at. Raises LimitExceededError."""
        self.visits_left -= count
        if self.visits_left < 0:
            raise LimitExceededError(f"looks at more than {limits.JSON_PATH_VISITS_MAX} values")


class Match(JSONPathNode):
    """A value that a path has found, and how it is reached. `parent` None: it is the whole document."""

    __slots__ = ("step",)

    parent: Match | None
    root: Any  # the Search: the library hands it to the filters

    def __init__(self, value: Any, step: str | int, parent: Match | None, root: Any) -> None:
        # The location of the base class would be copied for each child; here it is put together when somebody asks.
        self._value = value
        self.step = step
        self.parent = parent
        self.root = root

    @property  # type: ignore[misc]  # nobody writes through it
    def value(self) -> Any:
        """What stands there."""
        return self._value

    @property
    def location(self) -> tuple[int | str, ...]:  # type: ignore[override]
        """Names and indexes from the top."""
        steps = []
        match = self
        while match.parent is not None:
            steps.append(match.step)
            match = match.parent
        return tuple(reversed(steps))

    @property
    def depth(self) -> int:
        """How many steps it is from the top."""
        depth = 0
        match = self
        while match.parent is not None:
            depth += 1
            match = match.parent
        return depth

    def new_child(self, value: Any, key: int | str, parent: JSONPathNode | None) -> Match:  # noqa: ARG002  (it is this one)
        """See JSONPathNode. Raises LimitExceededError."""
        self.root.spend(1)
        return Match(value, key, self, self.root)


@dataclass(frozen=True, slots=True)
class Path:
    """A path that was read."""

    query: JSONPathQuery

    def find(self, document: Any, field: str, search: Search | None = None) -> list[Match]:
        """All matches, in the order of RFC 9535; one that is reached in several ways comes several times. Raises LimitExceededError.

        `search`: shared with other paths, which together may look at as many values as one alone.
        """
        return self._located(self.query.segments, search or Search(document, limits.JSON_PATH_VISITS_MAX), field)

    def find_distinct(self, document: Any, field: str) -> list[Match]:
        """All matches, each once."""
        return _distinct(self.find(document, field))

    @property
    def new_name(self) -> str | None:
        """The name of the member that the path stands for, where its last step is a name; None: it is not."""
        last = self.query.segments[-1] if self.query.segments else None
        if isinstance(last, JSONPathChildSegment) and len(last.selectors) == 1:
            selector = last.selectors[0]
            return selector.name if isinstance(selector, NameSelector) else None
        return None

    @property
    def is_root(self) -> bool:
        """Whether it is the whole document."""
        return not self.query.segments

    def find_parents(self, document: Any, field: str) -> list[Match]:
        """What all steps but the last one find, each once."""
        return _distinct(self._located(self.query.segments[:-1], Search(document, limits.JSON_PATH_VISITS_MAX), field))

    @staticmethod
    def _located(segments: Iterable[JSONPathSegment], search: Search, field: str) -> list[Match]:
        try:
            return _resolve(segments, search.document, search)
        except LimitExceededError as error:
            raise LimitExceededError(error.message, field=field) from error


def compile_path(text: str, field: str) -> Path:
    """Read a path; empty: `$`. Raises InvalidArgumentError, LimitExceededError."""
    if len(text) > limits.JSON_PATH_BYTES_MAX or len(text.encode()) > limits.JSON_PATH_BYTES_MAX:
        raise LimitExceededError(f"has more than {limits.JSON_PATH_BYTES_MAX} bytes", field=field)
    try:
        return Path(_compiled(text or "$"))
    except JSONPathError as error:
        place = error.token.index if error.token is not None else -1
        where = f"at character {place}" if place >= 0 else "at the end"
        rest = text[place : place + 40] if place >= 0 else ""
        what = f" ({rest!r})" if rest else ""
        raise InvalidArgumentError(
            f"{_shown(text)} is not JSONPath: {error.args[0]} {where}{what}", field=field
        ) from error
    except (OverflowError, IndexError) as error:
        raise InvalidArgumentError(f"{_shown(text)} is not JSONPath", field=field) from error


def outermost(matches: list[Match]) -> list[Match]:
    """Those of distinct matches that lie in no other one."""
    containers = {id(match.value) for match in matches if isinstance(match.value, dict | list)}
    inside: dict[int, bool] = {}

    def is_inside(match: Match) -> bool:
        parent = match.parent
        chain = []
        found = False
        while parent is not None:
            known = inside.get(id(parent.value))
            if known is not None:
                found = known
                break
            chain.append(id(parent.value))
            if id(parent.value) in containers:
                found = True
                break
            parent = parent.parent
        for each in chain:
            inside[each] = found
        return found

    return [match for match in matches if not is_inside(match)]


def _resolve(segments: Iterable[JSONPathSegment], value: Any, search: Search) -> list[Match]:
    # Segment by segment: as generators within generators a long path would go as deep into the stack.
    nodes: list[Any] = [Match(value, 0, None, search)]
    search.spend(1)
    for segment in segments:
        nodes = list(segment.resolve(nodes))
    return nodes


def _distinct(matches: list[Match]) -> list[Match]:
    """The first of those that are the same place."""
    if len(matches) < 2:
        return matches
    found: dict[tuple[int, int | str] | None, Match] = {}
    for match in matches:
        parent = match.parent
        found.setdefault(None if parent is None else (id(parent.value), match.step), match)
    return list(found.values())


def _shown(text: str) -> str:
    return repr(text[:80]) + ("..." if len(text) > 80 else "")


class _Descent(JSONPathRecursiveDescentSegment):
    """Visits without recursion."""

    __slots__ = ()

    def _visit(self, node: Any, depth: int = 1) -> Iterator[Any]:  # noqa: ARG002
        waiting = [node]
        while waiting:
            match = waiting.pop()
            yield match
            value = match.value
            if isinstance(value, dict):
                steps: Iterable[tuple[Any, Any]] = value.items()
            elif isinstance(value, list):
                steps = enumerate(value)
            else:
                continue
            match.root.spend(len(value) // SKIPPED_PER_VISIT)
            below = [match.new_child(each, step, match) for step, each in steps if isinstance(each, dict | list)]
            waiting.extend(reversed(below))


class _Filter(FilterExpression):
    """Counts the values that it is asked of."""

    __slots__ = ()

    def evaluate(self, context: FilterContext) -> bool:
        _search(context).spend(1)
        return super().evaluate(context)


class _RelativeQuery(RelativeFilterQuery):
    __slots__ = ()

    def evaluate(self, context: FilterContext) -> object:
        if not isinstance(context.current, dict | list):
            return context.current if self.query.empty() else JSONPathNodeList()
        return JSONPathNodeList(_resolve(self.query.segments, context.current, _search(context)))


class _RootQuery(RootFilterQuery):
    __slots__ = ()

    def evaluate(self, context: FilterContext) -> object:
        search = _search(context)
        return JSONPathNodeList(_resolve(self.query.segments, search.document, search))


class _Comparison(ComparisonExpression):
    """Counts what it compares; true is not equal to 1 within arrays and objects either."""

    __slots__ = ()

    def evaluate(self, context: FilterContext) -> bool:
        left, right = _single(self.left.evaluate(context)), _single(self.right.evaluate(context))
        search = _search(context)
        search.spend(1)
        match self.operator:
            case "==":
                return equal(left, right, search.spend)
            case "!=":
                return not equal(left, right, search.spend)
            case "<":
                return _less(left, right, search)
            case ">":
                return _less(right, left, search)
            case "<=":
                return _less(left, right, search) or equal(left, right, search.spend)
            case _:
                return _less(right, left, search) or equal(left, right, search.spend)


class _Nothing:
    """What a query that finds nothing is in a comparison: equal to itself alone."""


_NOTHING: Final = _Nothing()


def _single(value: Any) -> Any:
    if isinstance(value, JSONPathNodeList):
        return value[0].value if value else _NOTHING
    return _NOTHING if value is NOTHING else value


def _less(left: Any, right: Any, search: Search) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        search.spend(min(len(left), len(right)) // STRING_CHARACTERS_PER_STEP)
        return left < right
    if isinstance(left, bool) or isinstance(right, bool):
        return False
    return isinstance(left, int | float) and isinstance(right, int | float) and left < right


def _search(context: FilterContext) -> Search:
    search: Any = context.root
    assert isinstance(search, Search)
    return search


class _Parser(Parser):
    """Of one path: makes the expressions of this module, and counts them."""

    def __init__(self, *, env: JSONPathEnvironment) -> None:
        super().__init__(env=env)
        self._expressions_left = limits.JSON_PATH_EXPRESSIONS_MAX

    def parse_query(self, stream: TokenStream, *, in_filter: bool = False) -> Iterator[JSONPathSegment]:
        for segment in super().parse_query(stream, in_filter=in_filter):
            if isinstance(segment, JSONPathRecursiveDescentSegment):
                yield _Descent(env=self.env, token=segment.token, selectors=segment.selectors)
            else:
                yield segment

    def parse_filter_selector(self, stream: TokenStream) -> FilterSelector:
        selector = super().parse_filter_selector(stream)
        expression = selector.expression
        selector.expression = _Filter(expression.token, expression.expression)
        return selector

    def parse_filter_expression(self, stream: TokenStream, precedence: int = Parser.PRECEDENCE_LOWEST) -> Expression:
        self._count(stream)
        return super().parse_filter_expression(stream, precedence)

    def parse_function_extension(self, stream: TokenStream) -> Expression:
        self._count(stream)
        if stream.current.value in REFUSED_FUNCTIONS:
            raise JSONPathError(f"the function {stream.current.value}() is not supported", token=stream.current)
        return super().parse_function_extension(stream)

    def parse_infix_expression(self, stream: TokenStream, left: Expression) -> Expression:
        made = super().parse_infix_expression(stream, left)
        if isinstance(made, ComparisonExpression):
            return _Comparison(made.token, made.left, made.operator, made.right)
        return made

    def parse_root_query(self, stream: TokenStream) -> Expression:
        made = super().parse_root_query(stream)
        assert isinstance(made, RootFilterQuery)
        return _RootQuery(made.token, made.query)

    def parse_relative_query(self, stream: TokenStream) -> Expression:
        made = super().parse_relative_query(stream)
        assert isinstance(made, RelativeFilterQuery)
        return _RelativeQuery(made.token, made.query)

    def parse_integer_literal(self, stream: TokenStream) -> Expression:
        made = super().parse_integer_literal(stream)
        # The library goes by way of a double, which rounds what is beyond 2^53.
        digits = stream.current.value
        return IntegerLiteral(stream.current, int(digits)) if digits.lstrip("-").isdigit() else made

    def _count(self, stream: TokenStream) -> None:
        self._expressions_left -= 1
        if self._expressions_left < 0:
            raise JSONPathError(f"more than {limits.JSON_PATH_EXPRESSIONS_MAX} expressions", token=stream.current)


class _Environment(JSONPathEnvironment):
    parser_class = _Parser

    def setup_function_extensions(self) -> None:
        self.function_extensions = {"length": Length(), "count": Count(), "value": Value()}


@lru_cache(maxsize=PATHS_KEPT)
def _compiled(text: str) -> JSONPathQuery:
    return _Environment().compile(text)
