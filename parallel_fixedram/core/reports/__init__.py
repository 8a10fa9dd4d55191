"""What the verbs report, one module a verb: frozen values that go to JSON and come back.

Seconds are floats, bytes are integers; a number that is neither has its unit in its name.
"""
