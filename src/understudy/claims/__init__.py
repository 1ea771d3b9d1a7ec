"""Published statements as small experiments that can fail: one module a claim, its record under results/.

A module stands complete before its first run: the paper and its sentence, the task and scale on which it is tested
here, the arms with equally many trials of tuning, the seeds that judge, the rule, and one change (the negative control)
that must flip the verdict.
"""
