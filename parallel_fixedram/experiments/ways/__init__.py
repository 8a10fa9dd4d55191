"""Ways to write RAM to a file, each measured the same way; and two that measure a part of it.

``way.py`` says what a way is, ``table.py`` lists them. ``saving.py`` and ``naive.py`` run in a process of their own
(``child.py``); the others are the runner's side.
"""
