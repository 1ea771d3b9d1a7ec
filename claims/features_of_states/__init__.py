"""Experiments on encoders that are trained on states first: with which objective?"""
