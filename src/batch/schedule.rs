//! Which lane has the engine next. Pure, and knows no clock: it is told how long each batch took.
//!
//! The first lane with work goes first, unless one behind it is owed. Each lane has a *floor*, a share of the engine's
//! time that is its own however busy the others are. While it waits it earns its floor of every batch that another lane
//! computes, and pays for its own; once it has earned a turn, it goes before all others, for one batch, and when no query waits
//! it need not have earned all of it. So over any time in which a lane never runs empty it has the engine for at least its floor of
//! that time, less a constant of a few turns; and it takes it, where it can, while no query waits.
//!
//! What is earned is forgotten when the lane has run empty, and is bounded: a lane cannot save up for a stampede, and a lone
//! query among a flood of others is always next. One batch of another lane that takes longer than
//! `(TURNS_SAVED_MAX - 1) / floor` turns counts as that long.

use std::time::Duration;

use crate::domain::Lane;

/// The share of the engine's time that is each lane's own, in the order of [`Lane::ALL`]. What the others leave is the
/// query lane's: three quarters.
pub(super) const FLOORS: [f64; Lane::ALL.len()] = [0.0, 0.20, 0.05];

/// The most turns a lane can have earned.
const TURNS_SAVED_MAX: f64 = 4.0;

pub(super) struct Schedule {
    /// What a turn costs, in seconds.
    turn: f64,
    /// Seconds of engine time that each lane has earned; below zero it has had more than its floor.
    earned: [f64; Lane::ALL.len()],
}

impl Schedule {
    /// A turn is the time that a batch should take.
    pub(super) fn new(turn: Duration) -> Self {
        Self { turn: turn.as_secs_f64(), earned: [0.0; Lane::ALL.len()] }
    }

    /// The lane to serve next, of those with work.
    pub(super) fn next(&self, waiting: [bool; Lane::ALL.len()]) -> Option<Lane> {
        let with_work = || Lane::ALL.into_iter().filter(|&lane| waiting[lane as usize]);
        let turn = if waiting[Lane::Query as usize] { self.turn } else { 0.0 };
        let owed = |lane: &Lane| FLOORS[*lane as usize] > 0.0 && self.earned[*lane as usize] > turn;
        with_work().find(owed).or_else(|| with_work().next())
    }

    /// Notes that a lane had the engine for a time, during which the lanes of `waiting` had work too.
    pub(super) fn charge(&mut self, served: Lane, took: Duration, waiting: [bool; Lane::ALL.len()]) {
        let took = took.as_secs_f64();
        for lane in Lane::ALL {
            let (floor, earned) = (FLOORS[lane as usize], &mut self.earned[lane as usize]);
            *earned = if lane == served {
                // Debts are kept for one turn, or for one batch that was longer.
                (*earned - (1.0 - floor) * took).max(-self.turn.max(took))
            } else if waiting[lane as usize] {
                (*earned + floor * took).min(TURNS_SAVED_MAX * self.turn)
            } else {
                (*earned + floor * took).min(0.0)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TURN: Duration = Duration::from_millis(30);
    const ALL: [bool; 3] = [true; 3];

    /// Serves for as many batches as there are costs, and says how long each lane had the engine.
    fn serve(schedule: &mut Schedule, costs: &[Duration], waiting: impl Fn(usize) -> [bool; 3]) -> [Duration; 3] {
        let mut had = [Duration::ZERO; 3];
        for (at, &cost) in costs.iter().enumerate() {
            let lane = schedule.next(waiting(at)).unwrap();
            assert!(waiting(at)[lane as usize]);
            schedule.charge(lane, cost, waiting(at));
            had[lane as usize] += cost;
        }
        had
    }

    fn costs(max_ms: u64, count: usize) -> impl Strategy<Value = Vec<Duration>> {
        prop::collection::vec((1..=max_ms).prop_map(Duration::from_millis), count)
    }

    proptest! {
        /// From whatever was before, and over any stretch.
        #[test]
        fn a_lane_that_never_runs_empty_has_its_floor_less_a_few_turns(
            before in costs(60, 40), busy in prop::collection::vec(any::<[bool; 3]>(), 40), after in costs(60, 400),
            others in any::<[bool; 3]>(), lane in 1usize..3,
        ) {
            let mut schedule = Schedule::new(TURN);
            serve(&mut schedule, &before, |at| if busy[at] == [false; 3] { ALL } else { busy[at] });
            let mut waiting = others;
            waiting[lane] = true;
            for stretch in [50, 400] {
                let had = serve(&mut schedule, &after[..stretch], |_| waiting);
                let whole: Duration = had.iter().sum();
                let least = whole.as_secs_f64() * FLOORS[lane] - 5.0 * TURN.as_secs_f64();
                prop_assert!(had[lane].as_secs_f64() >= least, "{had:?} of {whole:?}");
            }
        }

        #[test]
        fn when_all_lanes_flood_the_queries_have_what_the_floors_leave(costs in costs(60, 2000)) {
            let had = serve(&mut Schedule::new(TURN), &costs, |_| ALL);
            let whole: Duration = had.iter().sum();
            let share = |lane: Lane| had[lane as usize].as_secs_f64() / whole.as_secs_f64();
            prop_assert!((share(Lane::Query) - 0.75).abs() < 0.02, "{had:?}");
            prop_assert!((share(Lane::Ingest) - 0.20).abs() < 0.02, "{had:?}");
            prop_assert!((share(Lane::WarmUp) - 0.05).abs() < 0.02, "{had:?}");
        }

        /// Queries that take up to half of the time, one after another, while both other lanes flood.
        #[test]
        fn a_lone_query_among_floods_is_always_next(costs in costs(30, 200)) {
            let mut schedule = Schedule::new(TURN);
            for pair in costs.chunks_exact(2) {
                let between = pair[0].max(pair[1]);
                let lane = schedule.next([false, true, true]).unwrap();
                schedule.charge(lane, between, [false, true, true]);
                prop_assert_eq!(schedule.next(ALL), Some(Lane::Query));
                schedule.charge(Lane::Query, pair[0].min(pair[1]), ALL);
            }
        }
    }

    #[test]
    fn without_debts_the_first_lane_with_work_goes_first() {
        let schedule = Schedule::new(TURN);
        assert_eq!(schedule.next(ALL), Some(Lane::Query));
        assert_eq!(schedule.next([false, true, true]), Some(Lane::Ingest));
        assert_eq!(schedule.next([false, false, true]), Some(Lane::WarmUp));
        assert_eq!(schedule.next([false; 3]), None);
    }

    #[test]
    fn floors_hold_when_every_batch_is_much_longer_than_a_turn() {
        let had = serve(&mut Schedule::new(TURN), &[Duration::from_secs(5); 1000], |_| ALL);
        for lane in [Lane::Ingest, Lane::WarmUp] {
            let share = had[lane as usize].as_secs_f64() / 5000.0;
            assert!((share - FLOORS[lane as usize]).abs() < 0.01, "{lane}: {share}");
        }
    }
}
