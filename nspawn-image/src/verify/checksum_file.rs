//! Checksum files as publishers write them: `sha256sum` and BSD style, clear-signed or bare.
//!
//! Source: coreutils' documentation of cksum and sha2 utilities (line forms, escaping of names); RFC 9580, 7
//! (clear-signed text and its dash escapes).

use crate::digest::Digest;

/// Names shown where a name is not found.
const NEAREST: usize = 3;

/// The digests that one checksum file lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChecksumFile {
    entries: Vec<ChecksumEntry>,
}

/// One line of a checksum file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChecksumEntry {
    /// The file's name as it is written; `None` where the line is a digest alone, or of standard input.
    pub name: Option<String>,
    /// Its digest.
    pub digest: Digest,
}

/// Why bytes are no checksum file, or cannot answer for a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChecksumFileError {
    /// Larger than any checksum file.
    #[error("it is larger than the {} bytes allowed", ChecksumFile::LIMIT)]
    TooLarge,
    /// Not text.
    #[error("it is not text")]
    Binary,
    /// No line holds a SHA-256 or SHA-512 digest.
    #[error("it holds no SHA-256 or SHA-512 checksum")]
    NoChecksum,
    /// The clear-signed text has no end.
    #[error("its clear-signed text is cut short")]
    CutShort,
    /// Two lines for one name that do not agree.
    #[error("it has two different checksums for {name}: {first} and {second}")]
    Conflict {
        /// The name.
        name: String,
        /// The one.
        first: Box<Digest>,
        /// The other.
        second: Box<Digest>,
    },
}

impl ChecksumFile {
    /// The largest file that is read, in bytes.
    pub const LIMIT: u64 = 4 << 20;

    /// Reads every line that holds a SHA-256 or SHA-512 digest; lines of other algorithms and comments are passed
    /// over. Of a clear-signed file only what is signed is read.
    ///
    /// # Errors
    ///
    /// Never panics, whatever `bytes` holds. See [`ChecksumFileError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ChecksumFileError> {
        if bytes.len() as u64 > Self::LIMIT {
            return Err(ChecksumFileError::TooLarge);
        }
        if bytes.contains(&0) {
            return Err(ChecksumFileError::Binary);
        }
        // A name in another encoding is not found, and harms no other line.
        let text = String::from_utf8_lossy(bytes);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let entries: Vec<ChecksumEntry> = match ClearText::find(text) {
            None => text.lines().filter_map(entry).collect(),
            Some(signed) => signed?.lines().filter_map(entry).collect(),
        };
        if entries.is_empty() {
            return Err(ChecksumFileError::NoChecksum);
        }
        Ok(Self { entries })
    }

    /// All lines, in their order.
    pub fn entries(&self) -> &[ChecksumEntry] {
        &self.entries
    }

    /// The digest for a file name: SHA-256 where both are listed, as it is computed in any case.
    ///
    /// A line for just this name goes before lines for the same name in some folder. A file that is one digest
    /// without a name answers for any name.
    ///
    /// # Errors
    ///
    /// [`ChecksumFileError::Conflict`] where lines disagree.
    pub fn find(&self, name: &str) -> Result<Option<Digest>, ChecksumFileError> {
        let exact = |entry: &&ChecksumEntry| entry.name.as_deref().map(plain) == Some(name);
        let in_folder = |entry: &&ChecksumEntry| entry.name.as_deref().map(base) == Some(name);
        let mut found: Vec<&ChecksumEntry> = self.entries.iter().filter(exact).collect();
        if found.is_empty() {
            found = self.entries.iter().filter(in_folder).collect();
        }
        if found.is_empty()
            && let [alone @ ChecksumEntry { name: None, .. }] = self.entries.as_slice()
        {
            found.push(alone);
        }
        let mut best: Option<Digest> = None;
        for algorithm in ["sha512", "sha256"] {
            let mut same = found
                .iter()
                .map(|entry| entry.digest)
                .filter(|digest| digest.algorithm() == algorithm);
            let Some(first) = same.next() else { continue };
            if let Some(second) = same.find(|digest| *digest != first) {
                return Err(ChecksumFileError::Conflict {
                    name: name.to_owned(),
                    first: Box::new(first),
                    second: Box::new(second),
                });
            }
            best = Some(first);
        }
        Ok(best)
    }

    /// The names that share the longest beginning with `name`, the best first; at most three.
    pub fn nearest(&self, name: &str) -> Vec<String> {
        let shared = |other: &str| {
            let pairs = other.bytes().zip(name.bytes());
            pairs.take_while(|(a, b)| a == b).count()
        };
        let mut names: Vec<&str> = self
            .entries
            .iter()
            .filter_map(|entry| entry.name.as_deref().map(base))
            .collect();
        names.sort_by_key(|other| std::cmp::Reverse(shared(other)));
        names.dedup();
        names.truncate(NEAREST);
        names.into_iter().map(str::to_owned).collect()
    }
}

/// The parts of a clear-signed text.
#[derive(Debug)]
pub(super) struct ClearText<'a> {
    /// The lines that are signed, with their dash escapes.
    body: &'a str,
    /// The signature's armour and what follows it.
    pub(super) armour: &'a str,
}

impl<'a> ClearText<'a> {
    /// Finds the first clear-signed text, whatever stands before it; `None` where nothing is clear-signed.
    pub(super) fn find(text: &'a str) -> Option<Result<Self, ChecksumFileError>> {
        let mut at = 0;
        let mut body = None;
        let mut in_headers = false;
        for line in text.split_inclusive('\n') {
            let next = at + line.len();
            match (line.trim_end(), body) {
                ("-----BEGIN PGP SIGNED MESSAGE-----", None) => in_headers = true,
                // The armour's own headers end with an empty line.
                ("", None) if in_headers => body = Some(next),
                ("-----BEGIN PGP SIGNATURE-----", Some(start)) => {
                    return Some(Ok(Self {
                        body: &text[start..at],
                        armour: &text[at..],
                    }));
                }
                _ => {}
            }
            at = next;
        }
        in_headers.then_some(Err(ChecksumFileError::CutShort))
    }

    /// The lines that are signed, without their dash escapes.
    pub(super) fn lines(&self) -> impl Iterator<Item = &'a str> {
        let lines = self.body.lines();
        lines.map(|line| line.strip_prefix("- ").unwrap_or(line))
    }
}

/// The name without `./` in front.
fn plain(mut name: &str) -> &str {
    while let Some(rest) = name.strip_prefix("./") {
        name = rest;
    }
    name
}

/// The name without folders.
fn base(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Reads one line; `None` where it is a comment or something else.
fn entry(line: &str) -> Option<ChecksumEntry> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    bsd(line).or_else(|| gnu(line))
}

/// `SHA256 (name) = hex`, and openssl's `SHA2-256(name)= hex`.
fn bsd(line: &str) -> Option<ChecksumEntry> {
    let (algorithm, rest) = line.split_once('(')?;
    let (name, hex) = rest.rsplit_once(')')?;
    let hex = hex.trim_start().strip_prefix('=')?.trim_start();
    let algorithm = match algorithm.trim_end().to_ascii_uppercase().as_str() {
        "SHA256" | "SHA-256" | "SHA2-256" => "sha256",
        "SHA512" | "SHA-512" | "SHA2-512" => "sha512",
        _ => return None,
    };
    Some(ChecksumEntry {
        name: named(name),
        digest: digest(hex).filter(|digest| digest.algorithm() == algorithm)?,
    })
}

/// `hex  name`, `hex *name`, `hex name` or `hex`; with a backslash in front, the name is escaped.
fn gnu(line: &str) -> Option<ChecksumEntry> {
    let (line, escaped) = match line.strip_prefix('\\') {
        Some(rest) => (rest, true),
        None => (line, false),
    };
    let (hex, name) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let digest = digest(hex)?;
    let name = name.trim_start();
    let name = name.strip_prefix('*').unwrap_or(name);
    let name = if escaped {
        named(&unescape(name))
    } else {
        named(name)
    };
    Some(ChecksumEntry { name, digest })
}

fn named(name: &str) -> Option<String> {
    (!matches!(name, "" | "-")).then(|| name.to_owned())
}

fn unescape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut characters = name.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some(other) => out.push(other),
                None => {}
            },
            other => out.push(other),
        }
    }
    out
}

/// A digest by its number of hexadecimal digits.
fn digest(hex: &str) -> Option<Digest> {
    let algorithm = match hex.len() {
        64 => "sha256",
        128 => "sha512",
        _ => return None,
    };
    format!("{algorithm}:{hex}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(byte: u8, count: usize) -> String {
        format!("{byte:02x}").repeat(count)
    }

    #[test]
    fn every_form_of_line() {
        let (a, b) = (hex(0xab, 32), hex(0xcd, 64));
        let sha256: Digest = format!("sha256:{a}").parse().unwrap();
        let sha512: Digest = format!("sha512:{b}").parse().unwrap();
        let upper = a.to_uppercase();
        let table: [(String, Option<Digest>); 32] = [
            (format!("{a}  x.img\n"), Some(sha256)),
            (format!("{a} *x.img"), Some(sha256)),
            (format!("{a} x.img\n"), Some(sha256)),
            (format!("{a}\tx.img\n"), Some(sha256)),
            (format!("{b}  x.img\n"), Some(sha512)),
            (format!("{upper}  x.img\r\n"), Some(sha256)),
            (format!("\u{feff}{a}  x.img\n"), Some(sha256)),
            (format!("SHA256 (x.img) = {a}\n"), Some(sha256)),
            (format!("SHA512 (x.img) = {b}\n"), Some(sha512)),
            (format!("sha256 (x.img) = {upper}\r\n"), Some(sha256)),
            (format!("SHA2-256(x.img)= {a}\n"), Some(sha256)),
            (format!("SHA256 (./sub/x.img) = {a}\n"), Some(sha256)),
            (format!("{a}  ./x.img\n"), Some(sha256)),
            (format!("{a} *./a/b/x.img\n"), Some(sha256)),
            (format!("{a}\n"), Some(sha256)),
            (format!("{a}  -\n"), Some(sha256)),
            (b.clone(), Some(sha512)),
            (format!("# a comment\n\n{a}  x.img\n"), Some(sha256)),
            (
                format!("# x.img: 3 bytes\nSHA256 (x.img) = {a}\n"),
                Some(sha256),
            ),
            (format!("{}  x.img\n{a}  x.img\n", hex(1, 16)), Some(sha256)),
            (
                format!("MD5 (x.img) = {a}\nSHA256 (x.img) = {a}\n"),
                Some(sha256),
            ),
            (format!("{b}  x.img\n{a}  x.img\n"), Some(sha256)),
            (format!("{a}  x.img\n{a}  x.img\n"), Some(sha256)),
            // the name itself goes before the same name elsewhere
            (
                format!("{}  old/x.img\n{a}  x.img\n", hex(1, 32)),
                Some(sha256),
            ),
            (format!("{a}  y.img\n"), None),
            (format!("{a}  x.img.xz\n"), None),
            (format!("{a}\n{b}\n"), None),
            (format!("SHA512 (x.img) = {a}\n{a}  y\n"), None),
            (
                format!(
                    "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n- -- x\n{a}  x.img\n-----BEGIN PGP SIGNATURE-----\n\nabc\n"
                ),
                Some(sha256),
            ),
            (
                format!(
                    "-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA256\r\n\r\nSHA256 (x.img) = {a}\r\n-----BEGIN PGP SIGNATURE-----\r\n"
                ),
                Some(sha256),
            ),
            // what is not signed is not read
            (
                format!(
                    "{a}  x.img\n-----BEGIN PGP SIGNED MESSAGE-----\n\n{a}  y.img\n-----BEGIN PGP SIGNATURE-----\n{a}  x.img\n"
                ),
                None,
            ),
            (format!("{a} *weird name.img\n{a}  x.img\n"), Some(sha256)),
        ];
        for (text, expected) in table {
            let file = ChecksumFile::parse(text.as_bytes()).expect(&text);
            assert_eq!(file.find("x.img"), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn escaped_and_odd_names() {
        let a = hex(0xab, 32);
        let text =
            format!("\\{a}  a\\\\b\\nc\nSHA256 (with (brackets) and = signs) = {a}\n{a}  sp ace\n");
        let file = ChecksumFile::parse(text.as_bytes()).unwrap();
        let names: Vec<&str> = file
            .entries()
            .iter()
            .filter_map(|entry| entry.name.as_deref())
            .collect();
        assert_eq!(names, ["a\\b\nc", "with (brackets) and = signs", "sp ace"]);
    }

    #[test]
    fn what_is_no_checksum_file() {
        let (a, other) = (hex(0xab, 32), hex(1, 32));
        for (text, expected) in [
            ("", ChecksumFileError::NoChecksum),
            ("<html>not found</html>", ChecksumFileError::NoChecksum),
            ("abc  x.img\n", ChecksumFileError::NoChecksum),
            ("a\0b", ChecksumFileError::Binary),
            (
                "-----BEGIN PGP SIGNED MESSAGE-----\n\nx\n",
                ChecksumFileError::CutShort,
            ),
        ] {
            assert_eq!(
                ChecksumFile::parse(text.as_bytes()),
                Err(expected),
                "{text:?}"
            );
        }
        let large = vec![b'\n'; ChecksumFile::LIMIT as usize + 1];
        assert_eq!(
            ChecksumFile::parse(&large),
            Err(ChecksumFileError::TooLarge)
        );
        for text in [
            format!("{a}  x.img\n{other}  x.img\n"),
            format!("{a}  a/x.img\n{other}  b/x.img\n"),
            format!("{a}  x.img\nSHA256 (x.img) = {other}\n"),
        ] {
            let file = ChecksumFile::parse(text.as_bytes()).unwrap();
            let found = file.find("x.img");
            assert!(
                matches!(&found, Err(ChecksumFileError::Conflict { name, .. }) if name == "x.img"),
                "{text:?}: {found:?}"
            );
        }
    }

    #[test]
    fn the_nearest_names_come_first() {
        let a = hex(0xab, 32);
        let lines = [
            "zebra",
            "debian-12-arm64.qcow2",
            "d/debian-13-amd64.qcow2",
            "deb",
            "debian-12-amd64.raw",
        ];
        let text: String = lines.iter().map(|name| format!("{a}  {name}\n")).collect();
        let file = ChecksumFile::parse(text.as_bytes()).unwrap();
        assert_eq!(
            file.nearest("debian-12-amd64.qcow2"),
            [
                "debian-12-amd64.raw",
                "debian-12-arm64.qcow2",
                "debian-13-amd64.qcow2"
            ]
        );
    }
}
