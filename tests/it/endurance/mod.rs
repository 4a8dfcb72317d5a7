//! What the program endures: being killed, a disk that is full or read-only, a file cut under it, more work than there is
//! room for. Short forms always run; `VECMEMO_TEST_LONG=1` runs the long ones, and `--nocapture` shows the counts.
#![expect(clippy::print_stdout, reason = "counts and seeds are part of what these tests show")]

mod bound;
mod cut;
mod events;
mod kill_loop;
mod media;
mod memory;
mod tagged;

/// Whether the long forms were asked for.
fn long() -> bool {
    std::env::var_os("VECMEMO_TEST_LONG").is_some_and(|value| value == "1")
}

/// Numbers that look random and come again with their seed.
struct Dice(u64);

impl Dice {
    /// From `VECMEMO_TEST_SEED`, or the clock; printed, so that a failure can be run again.
    fn seeded() -> Self {
        let given = std::env::var("VECMEMO_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = || std::time::UNIX_EPOCH.elapsed().map_or(1, |elapsed| elapsed.as_nanos() as u64);
        let seed = given.unwrap_or_else(clock);
        println!("VECMEMO_TEST_SEED={seed}");
        Self(seed)
    }

    /// SplitMix64, <https://prng.di.unimi.it/splitmix64.c>.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a bound above 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
