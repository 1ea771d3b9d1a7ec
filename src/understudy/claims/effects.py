"""The smallest effect that counts, for each kind of measure. One table for all claims.

A difference below its smallest effect is treated as no difference, however precisely it is measured. The values follow
one principle: 5 % of the scale of a measure that has one, 10 % for ratios. They are for rules whose bound is 0; a bound
that a claim states counts as it is.

References:
    Lakens (2017), Equivalence Tests, Social Psychological and Personality Science 8:355.
    Fu et al. (2020), D4RL, arXiv:2004.07219, appendix: reference returns of a random and an expert policy.
"""

from __future__ import annotations

from math import log

SMALLEST_EFFECTS: dict[str, float] = {
    "rate": 0.05,  # a rate of 0s and 1s, such as success
    "score": 0.05,  # a number from 0 to 1: AUROC, F1, explained variance, entropy in units of its maximum
    "correlation": 0.1,  # from -1 to 1
    "return": 5.0,  # normalized: 0 is a random policy, 100 the expert
    "return fraction": 0.05,  # the same, with 1 for the expert
    "hopper return": 0.05 * (3234.3 + 20.27),  # 5 of the normalized return of Hopper
    "walker return": 0.05 * (4592.3 - 1.63),  # 5 of the normalized return of Walker2d
    "log ratio": log(1.1),  # the logarithm of a positive quantity: a change by 10 %
    "loss fraction": 0.005,  # of the loss at the start of training
    "relative error": 0.05,
    "exponent": 0.05,  # of a power law
    "variance": 0.05,  # of actions from -1 to 1
    "cells": 1.0,  # a count of visited cells
    "steps": 5.0,  # a duration in steps of the environment
}
