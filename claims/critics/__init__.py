"""Experiments of the family critics: which part of a critic decides how wrong its values are?"""
