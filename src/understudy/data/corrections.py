"""Operations of views that correct columns: shifted in time, in other units, with other signs, in another order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core import DataError, Feature, unknown_name
from . import cache
from .episode import ColumnSource, Dataset
from .operations import Operation, SlicedSource, check_column
from .sources import WrapperSource

Component = str | int  # by its name or its number
CONVERSIONS = {"deg2rad": ("deg", "rad", math.pi / 180), "rad2deg": ("rad", "deg", 180 / math.pi),
               "mm2m": ("mm", "m", 0.001), "m2mm": ("m", "mm", 1000.0)}  # unit before, unit after, factor
_UNIT_NAMES = {"degree": "deg", "degrees": "deg", "radian": "rad", "radians": "rad", "millimeter": "mm",
               "millimeters": "mm", "meter": "m", "meters": "m"}


@dataclass(frozen=True)
class Shift(Operation):
    """Move a column in time, relative to all other columns.

    A positive number of steps moves values to later steps, and a negative number to earlier steps, as in `shift` of
    pandas: afterwards, step t has the value that was recorded at step ``t - steps``. Actions that are stored 3 steps
    late are corrected by -3. Steps for which no value was recorded are left out: the first ones of each episode after a
    shift to later steps, and the last ones after a shift to earlier steps.

    Args:
        steps: Number of steps. Not 0.
    """

    column: str
    steps: int

    def apply(self, data: Dataset) -> Dataset:
        check_column(self.column, data.source, "shift")
        if self.steps == 0:
            raise DataError("a shift by 0 steps changes nothing", where=f"shift, {self.column}",
                            hint="a negative number moves values to earlier steps, a positive one to later steps")
        short = np.flatnonzero(data.lengths <= abs(self.steps))
        if len(short):
            raise DataError(f"leaves nothing of its {data.lengths[short[0]]} steps",
                            where=f"shift, {self.column}, episode {short[0]}",
                            hint=f"leave out short episodes first: --filter 'length>={abs(self.steps) + 1}'")
        lengths = data.source.lengths
        start = np.full_like(lengths, max(self.steps, 0))
        stop = np.maximum(lengths + min(self.steps, 0), start)  # an episode that is not selected may be too short
        return Dataset(_ShiftedSource(data.source, start, stop, self.column, self.steps), data.metadata, data.indices)


class _ShiftedSource(SlicedSource):
    """Wraps a source so that one column is shifted in time, and each episode is cut to the steps that remain."""

    def __init__(self, inner: ColumnSource, start: np.ndarray, stop: np.ndarray, column: str, steps: int):
        super().__init__(inner, start, stop)
        self.key = self.key and cache.json_digest(self.key, column, steps)
        self._column, self._steps = column, steps

    def first_row(self, name, episode):
        return super().first_row(name, episode) - (self._steps if name == self._column else 0)


@dataclass(frozen=True)
class Scale(Operation):
    """Multiply components of a column by a number, or convert them to another unit.

    The result has the type of the column, and is float64 for whole numbers.

    Args:
        by: The factor, such as -1 for another sign; or ``"deg2rad"``, ``"rad2deg"``, ``"mm2m"`` or ``"m2mm"``, which
            also changes the unit of the column, and is refused if the unit is known to be another one. After another
            factor than -1, the unit is not known.
        components: Names or numbers of the components. By default all; with a unit such as
            ``"deg (gripper: percent)"``, all that have the unit before the brackets.
    """

    column: str
    by: float | str
    components: tuple[Component, ...] | None = None

    def apply(self, data: Dataset) -> Dataset:
        feature = _vector_feature(self.column, data, "scale", ("vector",))
        place = f"scale, {self.column}"
        if isinstance(self.by, str) and self.by not in CONVERSIONS:
            raise unknown_name("conversion", self.by, CONVERSIONS, place)
        factor = CONVERSIONS[self.by][2] if isinstance(self.by, str) else float(self.by)
        if not math.isfinite(factor) or factor in (0, 1):
            raise DataError(f"{factor:g} is not a factor that can be undone and changes something", where=place,
                            hint="such as 0.5, -1, deg2rad")
        factors = np.ones(feature.size)
        numbers, unit = self._scaled_components(feature, place)
        factors[numbers] = factor
        dtype = np.dtype(feature.dtype if np.dtype(feature.dtype).kind == "f" else "float64")
        factors = factors.reshape(feature.shape)
        return _with_changed_column(data, self.column, replace(feature, dtype=dtype.name, unit=unit), self,
                                    lambda values: (values * factors).astype(dtype))

    def _scaled_components(self, feature: Feature, where: str) -> tuple[list[int], str | None]:
        """Returns the numbers of the components that are scaled, and the unit of the column afterwards."""
        every = list(range(feature.size))
        chosen = every if self.components is None else component_numbers(feature, self.components, where)
        if not isinstance(self.by, str):
            return chosen, feature.unit if self.by == -1 else None
        before, after, _ = CONVERSIONS[self.by]
        if feature.unit is None:
            return chosen, after if len(chosen) == len(every) else None
        unit, bracket, exceptions = feature.unit.partition(" (")
        if _UNIT_NAMES.get(unit, unit) != before:
            raise DataError(f"the unit is {feature.unit}, and {self.by} converts {before}", where=where,
                            hint="choose another conversion, or give a factor")
        if self.components is not None:
            return chosen, after if len(chosen) == len(every) else None
        others = {text.partition(":")[0].strip() for text in exceptions.rstrip(")").split(",")} if bracket else set()
        names = feature.names or ()
        excepted = [i for i, name in enumerate(names) if {name, name.removesuffix(".pos")} & others]
        if len(excepted) != len(others):
            raise DataError(f"which components have the unit {before} is not known from {feature.unit!r}", where=where,
                            hint=f"name them: {self.column}[A,B]={self.by}")
        return [i for i in chosen if i not in excepted], after + bracket + exceptions


@dataclass(frozen=True)
class Swap(Operation):
    """Exchange the values of two components of a column, for data in which they are below each other's names.

    Args:
        components: Names or numbers of the two components. Their names stay where they are.
    """

    column: str
    components: tuple[Component, Component]

    def apply(self, data: Dataset) -> Dataset:
        feature = _vector_feature(self.column, data, "swap", ("vector", "discrete"))
        a, b = component_numbers(feature, self.components, f"swap, {self.column}")
        order = list(range(feature.size))
        order[a], order[b] = b, a
        return _with_order(data, self, feature, order)


@dataclass(frozen=True)
class Reorder(Operation):
    """Bring the components of a column into another order. Their names move with the values.

    Args:
        components: Names or numbers of all components, in the order that they get.
    """

    column: str
    components: tuple[Component, ...]

    def apply(self, data: Dataset) -> Dataset:
        feature = _vector_feature(self.column, data, "reorder", ("vector", "discrete"))
        place = f"reorder, {self.column}"
        order = component_numbers(feature, self.components, place)
        if len(order) != feature.size:
            raise DataError(f"{len(order)} components are named, and the column has {feature.size}", where=place,
                            hint=f"name each once, in the new order: {_component_list(feature)}")
        names = feature.names and tuple(feature.names[i] for i in order)
        return _with_order(data, self, replace(feature, names=names), order)


def _with_order(data: Dataset, operation: Swap | Reorder, feature: Feature, order: list[int]) -> Dataset:
    counts = feature.num_classes
    feature = replace(feature, num_classes=counts and tuple(counts[i] for i in order))
    return _with_changed_column(data, operation.column, feature, operation, lambda values: values[:, order])


def conversion_between(before: str | None, after: str | None) -> str | None:
    """Returns the conversion of `Scale` from a unit of a column to another, if there is one."""
    (unit, _, exceptions), (new_unit, _, new_exceptions) = ((u or "").partition(" (") for u in (before, after))
    return next((name for name, (a, b, _) in CONVERSIONS.items() if exceptions == new_exceptions
                 and (_UNIT_NAMES.get(unit, unit), new_unit) == (a, b)), None)


def component_numbers(feature: Feature, components: Sequence[Component], where: str) -> list[int]:
    """Returns the numbers of components that are given by their names or numbers.

    Raises:
        DataError: A component does not exist, is named twice, or has a name that several have.
    """
    names, numbers = feature.names or (), []
    if len(feature.shape) != 1:
        raise DataError(f"a step has the shape {feature.shape}, and only vectors have components that can be named",
                        where=where, hint="name no components, or another column")
    for component in components:
        matches = [i for i, name in enumerate(names) if name == component]
        if not matches and str(component).isdecimal() and int(component) < feature.size:
            matches = [int(component)]
        if len(matches) != 1:
            problem = "several components are called" if matches else "there is no component"
            raise DataError(f"{problem} {component!r}; there are {_component_list(feature)}", where=where,
                            hint=f"use names, or numbers from 0 to {feature.size - 1}")
        if matches[0] in numbers:
            raise DataError(f"the component {component!r} is given twice", where=where, hint="name each once")
        numbers += matches
    return numbers


def _component_list(feature: Feature) -> str:
    return ", ".join(map(str, feature.names or range(feature.size)))


def _vector_feature(column: str, data: Dataset, operation: str, kinds: tuple[str, ...]) -> Feature:
    """Returns the feature of a column of numbers. Raises an error if it has no numbers."""
    check_column(column, data.source, operation)
    feature = data.source.schema[column]
    if feature.kind not in kinds or feature.dtype == "bool":
        kind = "flag" if feature.dtype == "bool" else feature.kind
        raise DataError(f"the column has the kind {kind!r}, and needs {' or '.join(kinds)}",
                        where=f"{operation}, {column}", hint="name a column of numbers. Whole numbers that are "
                        "quantities: understudy convert DATA DST --columns NAME=COLUMN:quantities")
    return feature


def _with_changed_column(data: Dataset, name: str, feature: Feature, operation: Operation,
                         change: Callable[[np.ndarray], np.ndarray]) -> Dataset:
    return Dataset(_ChangedSource(data.source, name, feature, operation, change), data.metadata, data.indices)


class _ChangedSource(WrapperSource):
    """Wraps a source so that one column is changed row by row.

    Args:
        change: Returns the changed rows of the column, (rows, *shape).
    """

    def __init__(self, inner: ColumnSource, name: str, feature: Feature, operation: Operation,
                 change: Callable[[np.ndarray], np.ndarray]):
        super().__init__(inner, repr(operation))
        self.schema = {**self.schema, name: feature}
        self._name, self._change = name, change

    def column(self, name, episode):
        column = self.inner.column(name, episode)
        return self._change(np.asarray(column)) if name == self._name else column

    def packed_column(self, name):
        return self.gather_rows(name) if name == self._name else self.inner.packed_column(name)
