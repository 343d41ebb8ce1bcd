"""The museum: real bugs of the kernel's FPU code as mutants of our core, each a small change of source text.

    python -m tests.mutants B42                                   run the ordinary suites against one
    python -m pytest -p tests.museum.plugin --mutant B42 tests/core    look at one more closely

The core knows nothing of it: there is no switch in ``fpu_core`` or ``host_agent``. A mutant is a list of patches
(module, old text, new text), applied when the module is imported (``loader.py``), so a whole test process runs on the
mutated core. The catalogue is data (``mutants.py``): ``MUTANTS["B42"].patches``. One page each in ``docs/museum``.
"""
