"""Experiments of the family sparse-missions: the only reward comes at the end. How do few demonstrations help?"""
