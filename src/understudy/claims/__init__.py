"""The engine of claims: published statements as small experiments that can fail.

The claims themselves are in the folder `claims/` of the repository. A module stands complete before its first run: the
task and scale on which the statement is tested, the arms with equally many trials of tuning, the seeds that judge, the
rule, and one change (the negative control) that must flip the verdict. The Markdown file beside it has the paper, its
sentence, and the advice.
"""
