"""Clients that ask a fleet, and what became of every request: whether it was answered, with the right vector, and with nothing that was invalidated.

What is wrong:
- a vector that is not, bit for bit, what a machine without a tier has computed of the text;
- a `hit` on, or a `remote` record of, what was invalidated before the request began, where the machine that answers had to know of it: the one that
  was told at once; the tier at once, if it has taken the invalidation; the others within a second, or once a fault is over. What was
  invalidated is there again only after it was computed, so each such answer needs a computation after the invalidation had begun.
"""

import http.client
import json
import random
import struct
import threading
import time
from dataclasses import dataclass, field

# What the fleet promises: an invalidation is heard everywhere so soon.
NEWS_SECONDS = 1.0
KNOWN, GROUP = 400, 10
RECENT = 200
TIMEOUT_SECONDS = 30
SERVED = ("hit", "token_hit", "remote")


class Truth:
    """Texts and their vectors, as computed by a machine without a tier."""

    def __init__(self, node, count):
        self.texts = [f"text {number} of {number * 7919 % 9973}" for number in range(count)]
        self.rows = []
        for first in range(0, count, 32):
            items = node.items(self.texts[first:first + 32], cache="bypass")
            self.rows += [packed(item["embedding"]) for item in items]

    def tags(self, text):
        return [f"group:{text % (KNOWN // GROUP)}"] if text < KNOWN else ["new"]


def packed(embedding):
    """The f16 bits of a vector's decimals."""
    return struct.pack(f"<{len(embedding)}e", *embedding)


@dataclass(slots=True)
class Answer:
    """One request's."""

    text: int
    node: object
    began: float
    ended: float = 0.0
    status: str = ""
    is_right: bool = True


@dataclass(slots=True)
class Invalidation:
    """One that was asked for: which texts, by whom, and whether the tier took it."""

    texts: tuple
    node: object
    began: float
    ended: float = 0.0
    published: bool = False
    failed: bool = False


@dataclass
class Phase:
    """What happened in one part of a scenario."""

    name: str
    began: float
    ended: float = 0.0
    figures: dict = field(default_factory=dict)


class Client:
    """A kept connection, made anew for another machine."""

    def __init__(self):
        self.node, self.port, self.connection = None, None, None

    def post(self, node, path, body):
        if (node, node.port) != (self.node, self.port):
            self.close()
            self.node, self.port = node, node.port
            self.connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=TIMEOUT_SECONDS)
        try:
            self.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            self.close()
            raise

    def close(self):
        if self.connection:
            self.connection.close()
        self.node, self.port, self.connection = None, None, None


class Load:
    """Two clients a machine, each a hundred requests a second at most, and one who invalidates."""

    def __init__(self, nodes, truth, clients=2, pace=0.01, invalidates_every=0.15):
        self.nodes, self.truth, self.pace, self.invalidates_every = nodes, truth, pace, invalidates_every
        self.answers, self.invalidations, self.phases, self.faults = [], [], [], []
        # Machines that a scenario has taken away: their clients go to another, as a load balancer has them do.
        self.away = set()
        self.newest, self.lock, self.stopped = KNOWN, threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.ask_on, args=(node, at), daemon=True) for at, node in enumerate(nodes * clients)]
        self.threads.append(threading.Thread(target=self.invalidate_on, daemon=True))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    # The scenario's side.

    def phase(self, name, seconds):
        """A part of a scenario. `seconds` is how long it is at least."""
        if self.phases:
            self.phases[-1].ended = time.monotonic()
        self.phases.append(Phase(name, time.monotonic()))
        self.stopped.wait(seconds)

    def fault(self):
        """From now on not all machines can be told of everything. What was invalidated a moment ago may be forgotten by servers that fail."""
        self.faults.append([time.monotonic() - NEWS_SECONDS, float("inf")])

    def settled(self):
        """All machines are served by the tier again, and nobody has anything left to tell."""
        self.faults[-1][1] = time.monotonic()

    def stop(self):
        self.phases[-1].ended = time.monotonic()
        self.__exit__()
        self.judge()
        return self.phases

    # The clients' side.

    def pick(self, chance):
        """Mostly what is known; now and then a new text, or one that was new a moment ago and is likely to be on another machine."""
        draw, count = chance.random(), len(self.truth.texts)
        if draw < 0.7:
            return chance.randrange(KNOWN)
        with self.lock:
            if draw < 0.85:
                self.newest = self.newest + 1 if self.newest + 1 < count else KNOWN
                return self.newest
            return max(KNOWN, self.newest - chance.randrange(RECENT))

    def ask_on(self, home, seed):
        chance, client = random.Random(seed), Client()
        while not self.stopped.is_set():
            node = home if home not in self.away else chance.choice([node for node in self.nodes if node not in self.away])
            text = self.pick(chance)
            answer = Answer(text, node, time.monotonic())
            try:
                status, said = client.post(node, "/embed?details=true", {"inputs": self.truth.texts[text], "tags": self.truth.tags(text)})
                item = said["items"][0] if status == 200 else {}
                answer.status = item.get("status", "failed")
                answer.is_right = status != 200 or packed(item["embedding"]) == self.truth.rows[text]
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                answer.status = "moved" if node in self.away else "failed"
            answer.ended = time.monotonic()
            self.answers.append(answer)
            self.stopped.wait(max(0.0, answer.began + self.pace - answer.ended))

    def invalidate_on(self):
        """By tag, and every fourth time by text."""
        chance, client, count = random.Random(99), Client(), 0
        while not self.stopped.wait(self.invalidates_every):
            node = chance.choice([node for node in self.nodes if node not in self.away])
            group = chance.randrange(KNOWN // GROUP)
            texts = tuple(range(group, KNOWN, KNOWN // GROUP))
            wanted = {"tags": [f"group:{group}"]}
            if count % 4 == 3:
                texts = texts[:2]
                wanted = {"inputs": [self.truth.texts[text] for text in texts]}
            count += 1
            invalidation = Invalidation(texts, node, time.monotonic())
            try:
                status, said = client.post(node, "/invalidate", wanted)
                invalidation.failed = status != 200
                invalidation.published = said.get("published") is True
            except (OSError, http.client.HTTPException, ValueError):
                invalidation.failed = node not in self.away
                # Whether it was done nobody knows.
                texts = ()
            invalidation.texts, invalidation.ended = texts, time.monotonic()
            self.invalidations.append(invalidation)

    # What it was worth.

    def due(self, invalidation, answer):
        """From when on the one who answers must know of an invalidation."""
        ended = invalidation.ended
        if answer.node is invalidation.node:
            return ended
        is_in_tier = answer.status == "remote" and invalidation.published
        for first, last in self.faults:
            # It may not have been heard or told. What was told just before the fault, the servers may have forgotten.
            is_meanwhile = ended + NEWS_SECONDS > first and invalidation.began < last
            if is_meanwhile and not (is_in_tier and ended > first + NEWS_SECONDS):
                return last + NEWS_SECONDS
        return ended if is_in_tier else ended + NEWS_SECONDS

    def judge(self):
        """Finds what was invalidated and served all the same, and sums up each phase."""
        of_text, made = {}, {}
        for invalidation in self.invalidations:
            for text in invalidation.texts:
                of_text.setdefault(text, []).append(invalidation)
        for answer in self.answers:
            made.setdefault(answer.text, []).append(answer)
        stale = {id(answer) for text, answers in made.items() for answer in answers if self.is_stale(answer, of_text.get(text, []), answers)}
        for phase in self.phases:
            phase.figures = self.summary(phase, stale)

    def is_stale(self, answer, invalidations, others):
        if answer.status not in SERVED:
            return False
        known = [one for one in invalidations if self.due(one, answer) < answer.began]
        if not known:
            return False
        since = max(one.began for one in known)
        # On the machine itself; from the tier, on any. Of what failed or was lost nobody knows what it has left behind.
        brought = ("computed", "failed", "moved") if answer.status == "remote" else ("computed", "joined", "remote", "failed", "moved")
        return not any(other.status in brought and other.ended > since and other.began < answer.ended and other is not answer
                       and (answer.status == "remote" or other.node is answer.node) for other in others)

    def summary(self, phase, stale):
        answers = [answer for answer in self.answers if phase.began <= answer.began < phase.ended]
        right = [answer for answer in answers if answer.status not in ("failed", "moved")]
        took = [1000 * (answer.ended - answer.began) for answer in right]
        told = [one for one in self.invalidations if phase.began <= one.began < phase.ended]
        share = {status: sum(answer.status == status for answer in right) / max(1, len(right)) for status in ("hit", "remote", "computed")}
        return {
            "requests": len(answers) + len(told),
            "failed": sum(answer.status == "failed" for answer in answers) + sum(one.failed for one in told),
            "moved": sum(answer.status == "moved" for answer in answers),
            "wrong": sum(not answer.is_right for answer in answers),
            "stale": sum(id(answer) in stale for answer in answers),
            "rate": len(right) / (phase.ended - phase.began),
            "p50_ms": percentile(took, 50), "p99_ms": percentile(took, 99), "max_ms": max(took, default=0.0),
            **share,
            "invalidations": len(told), "untold": sum(not one.published for one in told),
        }


def percentile(values, percent):
    """The nearest rank; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0
