"""Shows that what is wrong is found: made-up answers and invalidations, of which each test changes one thing."""

import unittest
from types import SimpleNamespace

from load import NEWS_SECONDS, Answer, Invalidation, Load, Phase, packed, percentile

SOON = NEWS_SECONDS / 2
LATE = NEWS_SECONDS * 2


class SelfTest(unittest.TestCase):
    """A text that machine one has computed at 0, and one has invalidated at 10."""

    def setUp(self):
        self.one, self.two = SimpleNamespace(name="one"), SimpleNamespace(name="two")
        self.load = Load([self.one, self.two], truth=None)
        self.load.phases = [Phase("all", 0.0, 1000.0)]
        self.add(self.one, 0.0, "computed")
        self.add(self.two, 5.0, "remote")
        self.told = Invalidation((7,), self.one, 10.0, 10.1, published=True)
        self.load.invalidations.append(self.told)

    def add(self, node, at, status, **more):
        self.load.answers.append(Answer(7, node, at, at + 0.01, status, **more))

    def figures(self):
        self.load.judge()
        return self.load.phases[0].figures

    def test_what_was_served_before_is_right(self):
        self.assertEqual((self.figures()["stale"], self.figures()["failed"], self.figures()["wrong"]), (0, 0, 0))

    def test_a_hit_on_who_was_told_is_wrong_at_once(self):
        self.add(self.one, 10.2, "hit")
        self.assertEqual(self.figures()["stale"], 1)

    def test_others_hear_of_it_within_a_second(self):
        self.add(self.two, 10.1 + SOON, "hit")
        self.assertEqual(self.figures()["stale"], 0)
        self.add(self.two, 10.1 + LATE, "hit")
        self.assertEqual(self.figures()["stale"], 1)

    def test_the_tier_serves_it_no_more_once_it_was_told(self):
        self.add(self.two, 10.2, "remote")
        self.assertEqual(self.figures()["stale"], 1)

    def test_what_the_tier_was_not_told_may_come_from_it_while_there_is_a_fault(self):
        self.told.published = False
        self.load.faults.append([9.0, 50.0])
        self.add(self.two, 30.0, "remote")
        self.assertEqual(self.figures()["stale"], 0)
        self.add(self.two, 50.0 + LATE, "remote")
        self.assertEqual(self.figures()["stale"], 1)

    def test_what_the_tier_was_told_during_a_fault_does_not_come_from_it(self):
        self.load.faults.append([5.0, 50.0])
        self.add(self.two, 30.0, "remote")
        self.assertEqual(self.figures()["stale"], 1)

    def test_a_machine_that_could_not_hear_may_hit_until_the_fault_is_over(self):
        self.load.faults.append([9.0, 50.0])
        self.add(self.two, 30.0, "hit")
        self.assertEqual(self.figures()["stale"], 0)
        self.add(self.two, 50.0 + LATE, "hit")
        self.assertEqual(self.figures()["stale"], 1)

    def test_computed_again_it_is_there_again(self):
        self.add(self.one, 11.0, "computed")
        self.add(self.one, 20.0, "hit")
        self.add(self.two, 20.0, "remote")
        self.add(self.two, 21.0, "hit")
        self.assertEqual(self.figures()["stale"], 0)

    def test_computed_again_elsewhere_is_not_there_on_a_machine_that_never_asked(self):
        self.add(self.one, 11.0, "computed")
        self.add(self.two, 20.0, "hit")
        self.assertEqual(self.figures()["stale"], 1)

    def test_failed_and_wrong_are_counted(self):
        self.add(self.one, 3.0, "failed")
        self.add(self.one, 4.0, "hit", is_right=False)
        self.told.failed = True
        self.assertEqual((self.figures()["failed"], self.figures()["wrong"]), (2, 1))

    def test_decimals_are_the_bits_they_stand_for(self):
        self.assertEqual(packed([-0.06274414]), bytes.fromhex("04ac"))
        self.assertNotEqual(packed([-0.06274414]), packed([-0.0628]))

    def test_percentiles_are_values(self):
        self.assertEqual((percentile([3, 1, 2], 50), percentile([3, 1, 2], 99), percentile([], 99)), (2, 3, 0.0))
