"""Retrieval: the actions of the most similar situations, alone or together with what is trained."""
