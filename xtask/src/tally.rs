//! Adds up the results of all test executables, so that the last line is about the whole run.

use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::console;
use crate::error::{Result, TaskError};
use crate::process;

/// The numbers of a `test result:` line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// Runs `cargo test`, passes its output on, and ends with the sum.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    console::line(format_args!("$ {}", process::shown(command)));
    if io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| process::cannot_run(command, &error))?;
    let mut sum = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout)
            .split(b'\n')
            .map_while(io::Result::ok)
        {
            let mut out = io::stdout().lock();
            let _ = out.write_all(&line).and_then(|()| out.write_all(b"\n")); // nobody may be reading
            if let Some(one) = Tally::parse(&String::from_utf8_lossy(&line)) {
                sum.add(one);
            }
        }
    }
    let status = child
        .wait()
        .map_err(|error| process::cannot_run(command, &error))?;
    let verdict = if status.success() { "ok" } else { "FAILED" };
    // On the tests' own stream, so that it stays below them wherever that goes.
    let _ = writeln!(
        io::stdout().lock(),
        "\nall tests: {verdict}. {} passed; {} failed; {} ignored; finished in {:.2}s",
        sum.passed,
        sum.failed,
        sum.ignored,
        start.elapsed().as_secs_f64()
    );
    if !status.success() {
        return Err(TaskError::failed(format!(
            "`{}` ended with {status}",
            process::shown(command)
        )));
    }
    if sum.passed == 0 {
        return Err(TaskError::failed("no test ran"));
    }
    Ok(())
}

impl Tally {
    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |name: &str| {
            counts
                .split("; ")
                .find_map(|part| part.strip_suffix(name)?.trim().parse().ok())
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_read_and_others_are_not() {
        let line = "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 1 filtered out; finished in 0.31s";
        assert_eq!(
            Tally::parse(line),
            Some(Tally {
                passed: 12,
                failed: 0,
                ignored: 3
            })
        );
        let line = "test result: \u{1b}[31mFAILED\u{1b}(B\u{1b}[m. 0 passed; 2 failed; 0 ignored; 0 measured";
        assert_eq!(
            Tally::parse(line),
            Some(Tally {
                passed: 0,
                failed: 2,
                ignored: 0
            })
        );
        assert_eq!(Tally::parse("test root::x ... ok"), None);
    }
}
