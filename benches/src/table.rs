//! The rows of the table that `cargo xtask bench` writes: printed as they are measured, and kept as JSON lines in the
//! file that `NSPAWN_BENCH_ROWS` names.
#![allow(clippy::print_stdout)]

use std::fs::File;
use std::io::Write as _;
use std::sync::Once;
use std::time::Duration;

use serde_json::json;

use crate::process::Cost;

/// What is to be reached.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// Wall time to the end of the process, as a share of the peer's.
    Ended(f64),
    /// Wall time until the data is on the disk, as a share of the peer's.
    OnDisk(f64),
    /// Processor time, as a share of the peer's.
    Cpu(f64),
    /// Memory, in MiB.
    Memory(f64),
}

/// One comparison.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The bench and its input: `convert/zlib`.
    pub name: &'a str,
    /// How large it is: `1 GiB`.
    pub size: &'a str,
    /// What it is compared with.
    pub peer: &'a str,
    /// What ours took.
    pub ours: Cost,
    /// What the peer took; `None` where it fails.
    pub theirs: Option<Cost>,
    /// What is to be reached.
    pub goals: &'a [Goal],
}

impl Row<'_> {
    /// Prints the row and keeps it.
    ///
    /// # Panics
    ///
    /// Where the file cannot be written.
    pub fn tell(&self) {
        static HEAD: Once = Once::new();
        HEAD.call_once(|| {
            println!(
                "{:<22} {:>19}  {:<19} {:>8} {:>8} {:>6} {:>7} {:>5} {:>9}  goals",
                "", "size", "peer", "ours, s", "peer, s", "ratio", "on disk", "CPU", "MiB"
            );
        });
        let theirs = self.theirs;
        let seconds = theirs.map(|cost| cost.ended.as_secs_f64());
        let ended = theirs.map(|cost| ratio(self.ours.ended, cost.ended));
        let on_disk = theirs.and_then(|cost| share(self.ours.on_disk, cost.on_disk));
        let cpu = theirs.and_then(|cost| share(self.ours.cpu, cost.cpu));
        let memory = self.ours.memory_in_mib();
        let their_memory = theirs.and_then(|cost| cost.memory_in_mib());
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let both = format!("{}/{}", number(memory, 0), number(their_memory, 0));
        let goals = self.verdicts();
        println!(
            "{:<22} {:>19}  {:<19} {:>8.3} {:>8} {:>6} {:>7} {:>5} {both:>9}  {goals}",
            self.name,
            self.size,
            self.peer,
            self.ours.ended.as_secs_f64(),
            if theirs.is_some() {
                number(seconds, 3)
            } else {
                "fails".to_owned()
            },
            number(ended, 2),
            number(on_disk, 2),
            number(cpu, 2),
        );
        let Some(path) = std::env::var_os("NSPAWN_BENCH_ROWS") else {
            return;
        };
        let row = json!({
            "name": self.name, "size": self.size, "peer": self.peer, "goals": goals,
            "ours": self.ours.ended.as_secs_f64(), "theirs": seconds,
            "ended": ended, "on_disk": on_disk, "cpu": cpu,
            "memory": memory, "their_memory": their_memory,
        });
        let mut file = File::options().append(true).create(true).open(path);
        let kept = file.as_mut().map(|file| writeln!(file, "{row}"));
        assert!(matches!(kept, Ok(Ok(()))), "the row is not kept: {kept:?}");
    }

    /// Each goal, and whether it is met.
    fn verdicts(&self) -> String {
        let mut texts = Vec::new();
        for goal in self.goals {
            let (what, limit, found) = match (goal, &self.theirs) {
                (Goal::Memory(limit), _) => {
                    ("MiB", limit, self.ours.memory_in_mib().unwrap_or_default())
                }
                (_, None) => continue,
                (Goal::Ended(limit), Some(theirs)) => {
                    ("ratio", limit, ratio(self.ours.ended, theirs.ended))
                }
                (Goal::OnDisk(limit), Some(theirs)) => {
                    ("on disk", limit, ratio(self.ours.on_disk, theirs.on_disk))
                }
                (Goal::Cpu(limit), Some(theirs)) => {
                    ("CPU", limit, ratio(self.ours.cpu, theirs.cpu))
                }
            };
            let verdict = if found <= *limit { "met" } else { "missed" };
            let digits = if matches!(goal, Goal::Memory(_)) {
                0
            } else {
                2
            };
            texts.push(format!("{what} <= {limit:.digits$} {verdict}"));
        }
        texts.join(", ")
    }
}

fn ratio(ours: Duration, theirs: Duration) -> f64 {
    ours.as_secs_f64() / theirs.as_secs_f64()
}

/// The same, of what need not have been measured.
fn share(ours: Duration, theirs: Duration) -> Option<f64> {
    (!ours.is_zero() && !theirs.is_zero()).then(|| ratio(ours, theirs))
}
