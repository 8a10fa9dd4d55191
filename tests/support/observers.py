"""An observer that remembers what it heard."""

from parallel_fixedram.core.observer import Observer


class Heard(Observer):
    """Remembers everything, in order.

    Attributes:
        events: ``("phase", name, total)``, ``("advanced", size)``, ``("shard", trace)`` or ``("note", text)`` each.
    """

    def __init__(self):
        self.events = []

    def phase(self, name, total=0):
        self.events.append(("phase", name, total))

    def advanced(self, size):
        self.events.append(("advanced", size))

    def shard(self, trace):
        self.events.append(("shard", trace))

    def note(self, text):
        self.events.append(("note", text))

    @property
    def phases(self):
        """Names of the phases, in order."""
        return [event[1] for event in self.events if event[0] == "phase"]

    @property
    def done(self):
        """Bytes done and in all by name of the phase, the last one of each name."""
        found = {}
        for event, *what in self.events:
            if event == "phase":
                name, total = what
                found[name] = (0, total)
            elif event == "advanced":
                found[name] = (found[name][0] + what[0], found[name][1])
        return found
