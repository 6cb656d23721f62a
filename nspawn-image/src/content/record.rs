//! How checksums are written down.
//!
//! ```text
//! nspawn-run content 2
//! disk 2147483648                    length in bytes
//! 0 2c26b46b68ffc68f                 a unit of 2 MiB by its number, and its checksum
//! sha256:9f86d0…                     of all lines above
//! ```
//!
//! A unit of zeros is not listed. Of a tree there is one line for each path: its checksum, and the path.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

use super::Content;
use crate::convert::DiskSums;
use crate::digest::Hasher;
use crate::error::ImageError;
use crate::place;

const HEADING: &str = "nspawn-run content 2";
/// How those began that said something else of an image: they are as good as none.
const OLDER: &str = "nspawn-run content 1\n";
/// What a path's line may not hold as it is.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

impl Content {
    /// Reads what was written down; `None` where nothing was.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, ImageError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ImageError::io("read", path, error)),
        };
        if text.starts_with(OLDER) {
            return Ok(None);
        }
        let found = Self::parse(&text).ok_or_else(|| ImageError::Record {
            path: path.to_owned(),
            reason: "it is not as it was written".to_owned(),
        })?;
        Ok(Some(found))
    }

    fn parse(text: &str) -> Option<Self> {
        let (body, found) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        let mut hasher = Hasher::new(None);
        hasher.update(body.as_bytes());
        hasher.update(b"\n");
        if found != hasher.finish().sha256.to_string() {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != HEADING {
            return None;
        }
        let kind = lines.next()?;
        if kind == "tree" {
            let entries = lines.map(|line| {
                let (sum, path) = line.split_once(' ')?;
                let path: Vec<u8> = percent_decode_str(path).collect();
                Some((PathBuf::from(OsString::from_vec(path)), unhex(sum)?))
            });
            return entries.collect::<Option<_>>().map(Self::Tree);
        }
        let size = kind.strip_prefix("disk ")?.parse().ok()?;
        let units = lines.map(|line| {
            let (number, sum) = line.split_once(' ')?;
            Some((number.parse().ok()?, unhex(sum)?))
        });
        let units = units.collect::<Option<_>>()?;
        Some(Self::Disk(DiskSums { size, units }))
    }

    fn write_to(&self, output: &mut dyn Write) -> io::Result<()> {
        let mut output = Sealing {
            output,
            hasher: Hasher::new(None),
        };
        writeln!(output, "{HEADING}")?;
        match self {
            Self::Disk(sums) => {
                writeln!(output, "disk {}", sums.size)?;
                for (number, sum) in &sums.units {
                    writeln!(output, "{number} {sum:016x}")?;
                }
            }
            Self::Tree(entries) => {
                writeln!(output, "tree")?;
                for (path, sum) in entries {
                    let path = percent_encode(path.as_os_str().as_bytes(), ESCAPED);
                    writeln!(output, "{sum:016x} {path}")?;
                }
            }
        }
        let seal = output.hasher.finish().sha256;
        writeln!(output.output, "{seal}")
    }

    /// Writes it down in one step.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ImageError> {
        let new = path.with_file_name(format!(
            ".{}.new",
            path.file_name().unwrap_or_default().display()
        ));
        place::write_aside(&new, path, |file| self.write_to(file))
    }
}

/// Hashes what goes through it.
struct Sealing<'a> {
    output: &'a mut dyn Write,
    hasher: Hasher,
}

impl Write for Sealing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.output.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

fn unhex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn text(content: &Content) -> String {
        let mut text = Vec::new();
        content.write_to(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let disk = DiskSums {
            size: 5 << 20,
            units: BTreeMap::from([(0, 7), (2, u64::MAX)]),
        };
        let paths = ["", "usr", "usr/a b\nc%", "\u{fc}"];
        let tree = paths.iter().zip(1..).map(|(path, sum)| (path.into(), sum));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sums");
        assert_eq!(Content::read(&path).unwrap(), None);
        for content in [Content::Disk(disk), Content::Tree(tree.collect())] {
            content.write(&path).unwrap();
            assert_eq!(Content::read(&path).unwrap(), Some(content));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_written_down_is_sealed() {
        let units = BTreeMap::from([(0, 7)]);
        let text = text(&Content::Disk(DiskSums { size: 4, units }));
        for (from, to) in [
            ("0 0000000000000007", "0 0000000000000008"),
            ("disk 4", "disk 5"),
            ("content 2", "content 3"),
        ] {
            assert!(text.contains(from));
            assert_eq!(Content::parse(&text.replacen(from, to, 1)), None);
        }
        assert_eq!(Content::parse(""), None);
        assert_eq!(Content::parse(&text[..text.len() - 1]), None);
    }
}
