"""Experiments on encoders of pictures that are trained first, or with the policy: with which objective?"""
