//! Standard output: tables, JSON, and a reader that has gone away.

use std::io::{self, Stdout, Write};

use serde::Serialize;

use crate::error::{CommandError, Kind};

/// Standard output.
#[derive(Debug)]
pub(crate) struct Output(Stdout);

impl Output {
    pub(crate) fn stdout() -> Self {
        Self(io::stdout())
    }

    /// Writes text as it is; a closed pipe ends the command quietly, as it does other programs.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), CommandError> {
        written(
            self.0
                .write_all(text.as_bytes())
                .and_then(|()| self.0.flush()),
        )
    }

    /// Writes one JSON document.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), CommandError> {
        let text = serde_json::to_string_pretty(value).map_err(|error| {
            CommandError::new(Kind::Failure, "cannot write the result as JSON").because(error)
        })?;
        self.text(&(text + "\n"))
    }

    /// Writes rows below a heading, in columns.
    pub(crate) fn table(
        &mut self,
        heading: &[&str],
        rows: &[Vec<String>],
    ) -> Result<(), CommandError> {
        self.text(&columns(heading, rows))
    }
}

/// Turns the result of a write into the command's.
pub(crate) fn written(result: io::Result<()>) -> Result<(), CommandError> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(CommandError::new(
            Kind::Interrupted(13),
            "standard output was closed",
        )),
        Err(error) => {
            Err(CommandError::new(Kind::Failure, "cannot write to standard output").because(error))
        }
        Ok(()) => Ok(()),
    }
}

fn columns(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    };
    line(&mut heading.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// The last `count` lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Seconds as people say them: `4 s`, `3 min`, `2 h`, `5 days`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}

/// Bytes as people say them: `512 B`, `41.3 MB`; powers of ten.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes / 100;
    let mut unit = 0;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["a".into(), "1".into()],
            vec!["longer".into(), "2".into()],
        ];
        assert_eq!(
            columns(&["NAME", "N"], &rows),
            "NAME    N\na       1\nlonger  2\n"
        );
    }

    #[test]
    fn the_last_lines_are_no_more_than_there_are() {
        for (text, count, last) in [
            ("a\nb\nc\n", 2, "b\nc"),
            ("a\n", 2, "a"),
            ("", 2, ""),
            ("a", 0, ""),
        ] {
            assert_eq!(last_lines(text, count), last, "{text:?} {count}");
        }
    }

    #[test]
    fn numbers_are_said_as_people_do() {
        let sizes = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (41_300_000, "41.3 MB"),
            (u64::MAX, "18446.7 PB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [
            (4, "4 s"),
            (180, "3 min"),
            (7200, "2 h"),
            (432_000, "5 days"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
