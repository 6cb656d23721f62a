//! Whole processes against each other: they take turns, so that noise hits all of them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nspawn_tests::usage;

/// What ends a process that hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// What one run took; zero is what was not measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Until the process ended.
    pub ended: Duration,
    /// Until what it wrote was on the disk.
    pub on_disk: Duration,
    /// Processor time, of user and system.
    pub cpu: Duration,
    /// The most memory it held at once, in bytes: pages of files that it maps count.
    pub memory: u64,
}

impl Cost {
    /// Wall time and nothing else.
    pub fn of_time(ended: Duration) -> Self {
        Self {
            ended,
            ..Self::default()
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "printed with few digits")]
    pub(crate) fn memory_in_mib(&self) -> Option<f64> {
        (self.memory > 0).then(|| self.memory as f64 / f64::from(1 << 20))
    }
}

/// One of the processes that are compared.
pub struct Contestant<'a> {
    /// How it is called in the table.
    pub name: &'static str,
    /// In how many of the rounds it takes part: slow ones in few.
    pub rounds: usize,
    /// What it writes: a file, or a folder.
    pub output: PathBuf,
    /// Clears what an earlier run left, and says what to run. Not timed.
    pub command: Box<dyn Fn() -> Command + 'a>,
}

impl std::fmt::Debug for Contestant<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Contestant")
            .field("name", &self.name)
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}

/// Runs all of them in turns, in changing order, and answers their medians in the order given; `None` for one that
/// fails, which is told and not run again.
///
/// # Panics
///
/// Where the first one fails, which is ours.
pub fn compare(contestants: &[Contestant<'_>]) -> Vec<Option<Cost>> {
    let mut costs = vec![Some(Vec::new()); contestants.len()];
    let rounds = contestants.iter().map(|one| one.rounds).max();
    for round in 0..rounds.unwrap_or_default() {
        for turn in 0..contestants.len() {
            let index = (round + turn) % contestants.len();
            let contestant = &contestants[index];
            let Some(seen) = costs[index].as_mut().filter(|_| round < contestant.rounds) else {
                continue;
            };
            match run(contestant) {
                Ok(cost) => seen.push(cost),
                Err(error) => {
                    assert!(index > 0, "{}: {error}", contestant.name);
                    crate::note(format_args!("{} fails: {error}", contestant.name));
                    costs[index] = None;
                }
            }
        }
    }
    costs
        .into_iter()
        .map(|costs| costs.map(|costs| middle(&costs)))
        .collect()
}

/// Runs one of them once.
///
/// # Errors
///
/// What the program said at its end, or that it did not come to it.
///
/// # Panics
///
/// Where a program is absent.
pub fn run(contestant: &Contestant<'_>) -> Result<Cost, String> {
    let mut command = (contestant.command)();
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // The page cache is warm, and has nothing to write back.
    sync(Command::new("sync"));
    let start = Instant::now();
    let (output, usage) = match usage::run(&mut command, LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error.to_string()),
        other => other.unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program())),
    };
    let ended = start.elapsed();
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        // systemd's programs end with a line that says only that they do.
        let mut lines = text.lines().filter(|line| *line != "Exiting.");
        let last = lines.next_back().unwrap_or_default();
        return Err(format!("{}: {last}", output.status));
    }
    write_back(&contestant.output);
    Ok(Cost {
        ended,
        on_disk: start.elapsed(),
        cpu: usage.cpu,
        memory: usage.memory,
    })
}

fn write_back(output: &Path) {
    if output.is_dir() {
        let mut command = Command::new("sync");
        command.arg("--file-system").arg(output);
        sync(command);
    } else {
        let file =
            File::open(output).unwrap_or_else(|error| panic!("{}: {error}", output.display()));
        file.sync_data().expect("the disk takes the data");
    }
}

fn sync(mut command: Command) {
    assert!(command.status().expect("sync runs").success());
}

/// The middle of each.
fn middle(costs: &[Cost]) -> Cost {
    fn of<T: Ord + Copy>(costs: &[Cost], what: impl Fn(&Cost) -> T) -> T {
        let mut values: Vec<T> = costs.iter().map(what).collect();
        values.sort_unstable();
        values[values.len() / 2]
    }
    Cost {
        ended: of(costs, |cost| cost.ended),
        on_disk: of(costs, |cost| cost.on_disk),
        cpu: of(costs, |cost| cost.cpu),
        memory: of(costs, |cost| cost.memory),
    }
}
