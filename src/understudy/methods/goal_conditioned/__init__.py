"""Goals named later: they learn from episodes without a task how far any goal is, and reach it."""
