"""Experiments on histories: what must be learned so that a history helps?"""
