//! Benchmarks against the peers, measured in one run; the inputs are made by the benches themselves and kept in
//! `target/bench-data`. `NSPAWN_BENCH_QUICK=1` measures small inputs a few times, to see that all of it works.

pub mod inputs;
pub mod process;
pub mod program;
pub mod table;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Whether to measure little: only that everything works.
pub fn quick() -> bool {
    std::env::var_os("NSPAWN_BENCH_QUICK").is_some_and(|value| value == "1")
}

/// Rounds of those who are compared, and of the peers among them that take many times as long.
const ROUNDS: usize = 7;
const SLOW_ROUNDS: usize = 3;

/// Rounds behind each ratio.
pub fn rounds() -> usize {
    if quick() { 1 } else { ROUNDS }
}

/// Rounds of a slow peer.
pub fn slow_rounds() -> usize {
    rounds().min(SLOW_ROUNDS)
}

/// Where inputs are kept; made where it is missing.
///
/// # Panics
///
/// Where it cannot be made.
pub fn data_dir() -> PathBuf {
    let dir = nspawn_tests::fixture::target_dir().join("bench-data");
    std::fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    dir
}

/// The middle of the times; of an even number the upper one.
///
/// # Panics
///
/// Without any time.
pub fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}

/// Whether the benches' arguments ask for this one: all of them without a name, else those that hold it.
pub fn wanted(name: &str) -> bool {
    let mut names = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .peekable();
    names.peek().is_none() || names.any(|wanted| name.contains(&wanted))
}

/// Says something beside the table.
#[expect(clippy::print_stderr, reason = "benches speak to people")]
pub(crate) fn note(text: fmt::Arguments<'_>) {
    eprintln!("note: {text}");
}
