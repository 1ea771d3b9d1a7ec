"""How good is it, and how sure is that?"""
