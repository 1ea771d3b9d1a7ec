"""Named methods: functions of at most twenty lines that return a `Method`, one file each, in a folder for each family.

A method is found by its name, and its module is imported only then. A function may take `features`, the columns of the
data, where the choice of parts depends on them (`bc` takes a categorical head for discrete actions). Everything else
has a default.
"""

from .needs import NUMBERS, NUMBERS_OR_CLASSES, Need
from .registry import (
    MethodInfo,
    describe_method,
    describe_methods,
    find_function,
    find_method,
    method,
    method_costs,
    method_files,
    method_names,
    read_info,
    recommend,
)

__all__ = [
    "NUMBERS", "NUMBERS_OR_CLASSES", "MethodInfo", "Need", "describe_method", "describe_methods", "find_function",
    "find_method", "method", "method_costs", "method_files", "method_names", "read_info", "recommend",
]
