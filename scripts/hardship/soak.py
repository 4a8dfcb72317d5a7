"""The service under load and faults: see scripts/soak."""

import argparse
import asyncio
import sys
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True

import bad  # noqa: E402
import ending  # noqa: E402
import faults  # noqa: E402
import hostile  # noqa: E402
import mixed  # noqa: E402
import picture  # noqa: E402
import rolling  # noqa: E402
import shed  # noqa: E402
from report import Report, say  # noqa: E402
from service import Left  # noqa: E402

SCENES = {"shed": shed.scene, "hostile": hostile.scene, "bad": bad.scene, "fault": faults.scene, "ending": ending.scene, "rolling": rolling.scene, "mixed": mixed.scene}


class Trial:
    """What the scenes have in common."""

    def __init__(self, options):
        self.report, self.is_short = Report(), options.short
        self.mixed_seconds = options.minutes * 60 if options.minutes else 35 if options.short else 1800


async def tried(trial, options):
    for name, scene in SCENES.items():
        if options.only and options.only not in name:
            continue
        say(name)
        began = time.monotonic()
        try:
            await scene(trial)
        except (OSError, RuntimeError, LookupError, ValueError, TimeoutError, Left) as problem:
            trial.report.expect(False, f"{name}: given up: {problem!r}")
        say(f"{name}: {time.monotonic() - began:.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--only")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        outcome = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromName("judgement"))
        return 0 if outcome.wasSuccessful() and outcome.testsRun else 1
    if options.only and not any(options.only in name for name in SCENES):
        parser.error(f"no scene has {options.only!r} in its name: there are {', '.join(SCENES)}")
    trial = Trial(options)
    asyncio.run(tried(trial, options))
    lines = trial.report.lines()
    print("\n".join(lines))
    if options.report:
        options.report.write_text("\n".join(lines) + "\n")
    if options.picture and trial.report.memory:
        options.picture.write_text(picture.drawn(trial.report.memory))
    return 1 if trial.report.problems or not trial.report.rows else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, RuntimeError, TimeoutError) as problem:
        say(repr(problem))
        sys.exit(2)
