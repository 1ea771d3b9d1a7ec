"""Named methods, one file each, in a folder for each family.

A method that combines parts is a function of at most twenty lines that returns a `Method`. A method that learns in its
own way is a class, an `Algorithm`, whose function `method` returns the `Method`. Both are found by name, and imported
only then. Either function may take `features`, the columns of the data, where the choice of parts depends on them (`bc`
takes a categorical head for discrete actions). Everything else has a default.

Some options mean the same in all methods. `horizon` is the number of actions in a chunk, and `n_action_steps` how many
of them are executed before the next plan. A policy reads `n_obs_steps` observations. Where the docstring of a method
says nothing else, `n_steps` is how often a plan evaluates the network.

A method that collects while it trains has `n_rounds` rounds of `n_episodes` episodes or of at least `n_steps` steps
each, and `updates_per_step` updates for each collected step. The last episode of a round is complete. `noise` is the
standard deviation of the noise on the actions while collecting, in the units of the action. A method that reaches goals
learns from later values of `column`. `features` chooses encoders for images and text, and a categorical head for
discrete actions.
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
    method_families,
    method_files,
    method_names,
    method_parameters,
    read_info,
    recommend,
)

__all__ = [
    "NUMBERS", "NUMBERS_OR_CLASSES", "MethodInfo", "Need", "describe_method", "describe_methods", "find_function",
    "find_method", "method", "method_costs", "method_families", "method_files", "method_names",
    "method_parameters", "read_info", "recommend",
]
