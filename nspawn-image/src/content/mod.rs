//! What an image holds, as checksums that tell later what of it changed.
//!
//! They are taken while the image is made, as long as its bytes are in memory anyway, and are XXH3: fast enough for
//! that, and as good as any against what disks and accidents do. Against intent they are no help, as whoever may change
//! an image in the store may change its checksums too.

mod record;
mod tree;

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use crate::convert::DiskSums;
use crate::walk;

/// The checksums of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Those of a disk.
    Disk(DiskSums),
    /// That of each path below the root of a tree, sorted by the paths' bytes; the root's own is that of the empty path.
    Tree(Vec<(PathBuf, u64)>),
}

/// What of a stored image is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// A disk's length, in bytes.
    Length {
        /// What it was.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// Some bytes of a disk.
    Bytes {
        /// The first byte of the piece that differs.
        start: u64,
        /// The byte after its last.
        end: u64,
        /// How many pieces of that length differ in all.
        chunks: usize,
    },
    /// A path of a tree.
    Path {
        /// The first path, relative to the tree.
        path: PathBuf,
        /// `differs`, `is missing` or `was added`.
        found: &'static str,
        /// How many paths do in all.
        paths: usize,
    },
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let more = |count: usize| match count {
            0 | 1 => String::new(),
            _ => format!(", and {} more", count - 1),
        };
        match self {
            Self::Length { expected, found } => {
                write!(f, "it is {found} bytes long, not {expected}")
            }
            Self::Bytes { start, end, chunks } => {
                write!(f, "bytes {start} to {end} differ{}", more(*chunks))
            }
            Self::Path { path, found, paths } => {
                let path = Path::new("/").join(path);
                write!(f, "{} {found}{}", path.display(), more(*paths))
            }
        }
    }
}

impl Content {
    /// The first place where `now` is not what this was.
    pub(crate) fn compare<'a>(&'a self, now: &'a Self) -> Option<Damage> {
        match (self, now) {
            (Self::Disk(was), Self::Disk(is)) if was.size != is.size => Some(Damage::Length {
                expected: was.size,
                found: is.size,
            }),
            (Self::Disk(was), Self::Disk(is)) => {
                let mut differ = changes(was.units.iter(), is.units.iter(), u64::cmp);
                let (number, _) = differ.next()?;
                Some(Damage::Bytes {
                    start: number * DiskSums::UNIT,
                    end: ((number + 1) * DiskSums::UNIT).min(was.size),
                    chunks: 1 + differ.count(),
                })
            }
            (Self::Tree(was), Self::Tree(is)) => {
                let entries = |(path, sum): &'a (PathBuf, u64)| (path, sum);
                let mut differ =
                    changes(was.iter().map(entries), is.iter().map(entries), walk::order);
                let (path, found) = differ.next()?;
                Some(Damage::Path {
                    path: path.clone(),
                    found,
                    paths: 1 + differ.count(),
                })
            }
            _ => Some(Damage::Path {
                path: PathBuf::new(),
                found: "differs",
                paths: 1,
            }),
        }
    }
}

/// What two lists, both sorted by `order`, do not say alike, and what became of it.
fn changes<'a, K: 'a>(
    was: impl Iterator<Item = (&'a K, &'a u64)>,
    is: impl Iterator<Item = (&'a K, &'a u64)>,
    order: impl Fn(&K, &K) -> Ordering,
) -> impl Iterator<Item = (&'a K, &'static str)> {
    let (mut was, mut is) = (was.peekable(), is.peekable());
    std::iter::from_fn(move || {
        loop {
            let next = match (was.peek(), is.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => order(old, new),
            };
            match next {
                Ordering::Less => return Some((was.next()?.0, "is missing")),
                Ordering::Greater => return Some((is.next()?.0, "was added")),
                Ordering::Equal => {
                    let ((key, old), (_, new)) = (was.next()?, is.next()?);
                    if old != new {
                        return Some((key, "differs"));
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = DiskSums::UNIT;

    fn disk(size: u64, units: &[(u64, u64)]) -> Content {
        let units = units.iter().copied().collect();
        Content::Disk(DiskSums { size, units })
    }

    #[test]
    fn the_first_damage_to_a_disk_is_named() {
        let sound = disk(3 * UNIT + 100, &[(1, 7), (3, 9)]);
        let said = |now: &Content| sound.compare(now).map(|damage| damage.to_string());
        assert_eq!(said(&sound), None);
        let bytes =
            |from: u64, to: u64, more: &str| Some(format!("bytes {from} to {to} differ{more}"));
        let cases = [
            (
                disk(3 * UNIT + 100, &[(1, 8), (3, 9)]),
                bytes(UNIT, 2 * UNIT, ""),
            ),
            // What was a hole, and what became one.
            (
                disk(3 * UNIT + 100, &[(0, 1), (1, 7)]),
                bytes(0, UNIT, ", and 1 more"),
            ),
            (
                disk(3 * UNIT + 100, &[(1, 7)]),
                bytes(3 * UNIT, 3 * UNIT + 100, ""),
            ),
            (
                disk(5, &[]),
                Some(format!("it is 5 bytes long, not {}", 3 * UNIT + 100)),
            ),
        ];
        for (now, expected) in cases {
            assert_eq!(said(&now), expected, "{now:?}");
        }
    }

    #[test]
    fn every_change_of_a_tree_counts() {
        let tree = |entries: &[(&str, u64)]| {
            Content::Tree(
                entries
                    .iter()
                    .map(|(path, sum)| (path.into(), *sum))
                    .collect(),
            )
        };
        let sound = tree(&[("", 1), ("a", 2), ("a-b", 3), ("a/b", 4)]);
        let said = |now: &Content| sound.compare(now).map(|damage| damage.to_string());
        assert_eq!(said(&sound), None);
        let cases = [
            (tree(&[("", 1), ("a", 2), ("a/b", 4)]), "/a-b is missing"),
            (
                tree(&[("", 1), ("a", 2), ("a-b", 3), ("a/b", 5)]),
                "/a/b differs",
            ),
            (
                tree(&[("", 9), ("a", 2), ("a-b", 3), ("a/b", 4), ("c", 0)]),
                "/ differs, and 1 more",
            ),
            (tree(&[("0", 0)]), "/ is missing, and 4 more"),
            (
                tree(&[("", 1), ("a", 2), ("a-b", 3), ("a/a", 0), ("a/b", 4)]),
                "/a/a was added",
            ),
        ];
        for (now, expected) in cases {
            assert_eq!(said(&now).as_deref(), Some(expected));
        }
    }
}
