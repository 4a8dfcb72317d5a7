"""That what is wrong is found: made-up figures, of which each test spoils one; and clients against servers that misbehave."""

import asyncio
import collections
import contextlib
import io
import unittest
import xml.dom.minidom

import bad
import ending
import hostile
import mixed
import picture
import rolling
import shed
from report import Report
from service import MIB, PANIC, Left, Wire


def missed(judge, *arguments):
    """How many bars are missed."""
    report = Report()
    with contextlib.redirect_stderr(io.StringIO()):
        judge(report, *arguments)
    return len(report.problems)


class Standing(unittest.TestCase):
    """The second half of a watch."""

    def rows(self, own=lambda at: 100 * MIB, files=lambda at: 30):
        return [(float(at), 2 * own(at), own(at), files(at)) for at in range(200)]

    def test_what_stands_still_does(self):
        noisy = self.rows(own=lambda at: (100 + at % 7) * MIB)
        self.assertEqual(missed(mixed.judge, "x", noisy, []), 0)

    def test_growth_in_the_first_half_is_warming_up(self):
        self.assertEqual(missed(mixed.judge, "x", self.rows(own=lambda at: min(at, 90) * MIB), []), 0)

    def test_a_leak_of_memory_is_found(self):
        self.assertEqual(missed(mixed.judge, "x", self.rows(own=lambda at: 100 * MIB + at * MIB // 8), []), 1)

    def test_a_leak_of_descriptors_is_found(self):
        self.assertEqual(missed(mixed.judge, "x", self.rows(files=lambda at: 30 + at // 20), []), 1)

    def test_a_panic_is_found(self):
        self.assertEqual(missed(mixed.judge, "x", self.rows(), ["thread 'x' panicked at"]), 1)
        self.assertTrue(PANIC.search("thread 'vecmemo-http' (3) panicked at src/x.rs:1:2:"))

    def test_a_line_through_points_is_theirs(self):
        self.assertAlmostEqual(mixed.slope([(0, 1.0), (1, 3.0), (2, 5.0)]), 4.0)


class Hostile(unittest.TestCase):
    case = hostile.Case("x", None, ("408",), 2)
    hits = {"failed": 0, "p99_ms": 3.0, "why": []}

    def test_the_right_ending_in_time_is_right(self):
        self.assertEqual(missed(hostile.judge, self.case, [], 2.0, 6.0, self.hits), 0)

    def test_another_ending_a_late_one_and_hits_that_wait_or_fail_are_not(self):
        self.assertEqual(missed(hostile.judge, self.case, ["200"], 2.0, 6.0, self.hits), 1)
        self.assertEqual(missed(hostile.judge, self.case, [], 7.0, 6.0, self.hits), 1)
        self.assertEqual(missed(hostile.judge, self.case, [], 2.0, 6.0, {**self.hits, "failed": 1}), 1)
        self.assertEqual(missed(hostile.judge, self.case, [], 2.0, 6.0, {**self.hits, "p99_ms": 1000.0}), 1)


class Bad(unittest.TestCase):
    def test_a_5xx_a_panic_and_no_answer_are_found(self):
        good = collections.Counter({400: 90, 200: 10})
        self.assertEqual(missed(bad.judge, good, [], []), 0)
        self.assertEqual(missed(bad.judge, good + collections.Counter({500: 1}), [(500, "x")], []), 1)
        self.assertEqual(missed(bad.judge, good, [], ["panicked"]), 1)
        self.assertEqual(missed(bad.judge, good, ["Left to x"], []), 1)
        self.assertEqual(missed(bad.judge, collections.Counter({200: 99, 400: 1}), [], []), 1)

    def test_a_seed_makes_the_same_requests(self):
        requests = [[bad.changed(chance) for _ in range(200)] for chance in (bad.random.Random(7), bad.random.Random(7))]
        self.assertEqual(*requests)
        self.assertGreater(len({str(request) for request in requests[0]}), 150)


class Ending(unittest.TestCase):
    """Which requests are lost."""

    def load(self, stopping):
        load = ending.Load(None)
        load.stopping = stopping
        return load

    def test_a_kept_connection_that_is_closed_at_the_end_may_be_asked_again(self):
        load = self.load(1.0)
        load.ended(True, Left("closed"))
        self.assertEqual(load.lost, [])

    def test_a_cut_answer_a_silent_new_connection_and_one_closed_before_the_end_are_lost(self):
        for stopping, kept, begun in ((1.0, True, True), (1.0, False, False), (None, True, False)):
            load = self.load(stopping)
            load.ended(kept, Left("closed", begun))
            self.assertEqual(len(load.lost), 1, (stopping, kept, begun))


class Clients(unittest.TestCase):
    """The client against servers that end in their own way."""

    def ask(self, answer):
        async def served(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        async def run():
            server = await asyncio.start_server(served, "127.0.0.1", 0)
            wire = Wire(server.sockets[0].getsockname()[1], 5)
            try:
                return await wire.ask("GET", "/x")
            finally:
                wire.close()
                server.close()
        return asyncio.run(run())

    def test_an_answer_is_read_whole(self):
        self.assertEqual(self.ask(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"), (200, {"content-length": "2"}, b"ab"))

    def test_nothing_and_half_an_answer_are_told_apart(self):
        for answer, begun in ((b"", False), (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab", True), (b"HTTP/1.1 2", True)):
            with self.assertRaises(Left) as raised:
                self.ask(answer)
            self.assertEqual(raised.exception.begun, begun, answer)


class Words(unittest.TestCase):
    def test_the_deployed_proxy_is_what_is_tried(self):
        said = rolling.configuration(1234, [5678, 5679])
        self.assertIn("server vecmemo-2 127.0.0.1:5679", said)
        self.assertIn("bind 127.0.0.1:1234", said)
        self.assertNotIn("ssl crt", said)

    def test_a_bound_is_the_sum_of_the_settings(self):
        self.assertEqual(shed.bound(0), 192 * MIB + shed.CONNECTIONS * 65536 + 16384 * 4096)

    def test_a_table_says_what_was_missed(self):
        report = Report()
        with contextlib.redirect_stderr(io.StringIO()):
            report.row("a", "b", requests=1000, failed=0)
            report.expect(False, "it was slow")
        self.assertEqual(report.lines()[2], "| a | b | 1,000 | 0 |  |  |  |  |")
        self.assertEqual(report.lines()[-1], "MISSED: it was slow")

    def test_a_picture_is_one(self):
        drawn = picture.drawn([(0.0, 80 * MIB, 50 * MIB), (600.0, 90 * MIB, 55 * MIB)])
        self.assertEqual(xml.dom.minidom.parseString(drawn).documentElement.tagName, "svg")
        self.assertIn("prefers-color-scheme: dark", drawn)
