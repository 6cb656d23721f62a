//! The last lines of what systemd-nspawn or a machine's console said, fit to be shown.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// How much of a log is looked at, in bytes from its end.
const LENGTH: u64 = 4096;

/// What systemd-nspawn says that says nothing to the user.
const NOISE: [&str; 3] = [
    "Attempted to remove disk file system",
    "Press ^] three times",
    "Press Ctrl-]",
];

/// Reads the last lines of a log; none where it cannot be read.
pub(crate) fn read(path: &Path) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LENGTH)))?;
        let mut bytes = Vec::new();
        file.take(LENGTH).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    lines(&String::from_utf8_lossy(&read().unwrap_or_default()))
}

/// Splits text into lines, without escape sequences, control characters, empty lines and noise.
fn lines(text: &str) -> Vec<String> {
    let clean = |line: &str| {
        let mut plain = String::new();
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            if c == '\u{1b}' {
                // up to the letter that ends a control sequence. Source: ECMA-48, 5.4
                let _ = chars.by_ref().find(char::is_ascii_alphabetic);
            } else if !c.is_control() {
                plain.push(c);
            }
        }
        plain.trim().to_owned()
    };
    let shown = |line: &String| !line.is_empty() && !NOISE.iter().any(|noise| line.contains(noise));
    text.lines().map(clean).filter(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_marks_are_left_out() {
        let text = "[\u{1b}[0;32m  OK  \u{1b}[0m] Reached x.\r\r\n\nPress ^] three times within 1s\n\u{1b}[";
        assert_eq!(lines(text), ["[  OK  ] Reached x."]);
    }
}
