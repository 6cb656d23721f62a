//! Layers of container images: archives of changes to the tree below them.
//!
//! A whiteout takes away what lower layers hold, and nothing of its own layer, wherever in the archive it stands. So a
//! layer is read twice: first for its whiteouts, then for everything else.
//!
//! Source: OCI image-spec 1.1, layer.md, "Whiteouts".

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::UnpackError;
use super::archive::Archive;
use super::tree::{self, Tree};
use crate::limits::Limits;

const PREFIX: &[u8] = b".wh.";
/// The names that aufs keeps for itself; one of them empties a folder.
const RESERVED: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Most bytes of all whiteouts' paths.
const NAMES: usize = 256 << 20;

/// What a layer takes away from those below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Whiteouts {
    removed: Vec<PathBuf>,
    emptied: Vec<PathBuf>,
    /// Entries of the archive, whiteouts included.
    pub(crate) entries: u64,
}

impl Whiteouts {
    /// Reads an archive to its end, and what follows it in the input.
    pub(crate) fn scan<E: Fn(io::Error) -> UnpackError>(
        input: impl Read,
        explain: E,
        limits: &Limits,
    ) -> Result<Self, UnpackError> {
        let mut archive = Archive::new(input, explain);
        let mut found = Self::default();
        let mut names = 0;
        while let Some(entry) = archive.next()? {
            found.entries += 1;
            if found.entries > limits.entries {
                let limit = limits.entries;
                return Err(UnpackError::Entries { limit });
            }
            let path = tree::clean(&entry.name)?;
            if let Some(whiteout) = Whiteout::of(&path)? {
                names += path.as_os_str().len();
                if names > NAMES {
                    let what = "more than 256 MiB of removed names".to_owned();
                    return Err(UnpackError::Unsupported(what));
                }
                match whiteout {
                    Whiteout::Remove(path) => found.removed.push(path),
                    Whiteout::Empty(path) => found.emptied.push(path),
                    Whiteout::Nothing => {}
                }
            }
        }
        archive.drain()?;
        Ok(found)
    }

    /// Applies them to the layers below, which are what the tree holds so far.
    pub(crate) fn apply(&self, tree: &mut Tree) -> Result<(), UnpackError> {
        self.emptied.iter().try_for_each(|path| tree.clear(path))?;
        self.removed.iter().try_for_each(|path| tree.remove(path))
    }
}

/// Adds a layer's own files to the tree. Call [`Whiteouts::apply`] before.
pub(crate) fn add_layer<E: Fn(io::Error) -> UnpackError>(
    tree: &mut Tree,
    input: impl Read,
    explain: E,
    mut progress: impl FnMut(),
) -> Result<(), UnpackError> {
    let mut archive = Archive::new(input, explain);
    while let Some(entry) = archive.next()? {
        if Whiteout::of(&tree::clean(&entry.name)?)?.is_none() {
            tree.add(&entry, &mut archive)?;
        }
        progress();
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Whiteout {
    Remove(PathBuf),
    Empty(PathBuf),
    /// Something that aufs left, or below it.
    Nothing,
}

impl Whiteout {
    fn of(path: &Path) -> Result<Option<Self>, UnpackError> {
        let above = path.parent().unwrap_or(Path::new(""));
        let starts = |name: &OsStr| name.as_bytes().starts_with(PREFIX);
        if above.iter().any(starts) {
            return Ok(Some(Self::Nothing));
        }
        let name = path.file_name().unwrap_or_default().as_bytes();
        Ok(match name.strip_prefix(PREFIX) {
            None => None,
            Some(_) if name == OPAQUE => Some(Self::Empty(above.to_owned())),
            Some(_) if name.starts_with(RESERVED) => Some(Self::Nothing),
            Some(b"" | b"." | b"..") => {
                return Err(UnpackError::Entry {
                    name: path.display().to_string(),
                    reason: "removes a file without a name",
                });
            }
            Some(name) => Some(Self::Remove(above.join(OsStr::from_bytes(name)))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_by_their_names() {
        let remove = |path: &str| Some(Whiteout::Remove(path.into()));
        let empty = |path: &str| Some(Whiteout::Empty(path.into()));
        let table = [
            ("etc/passwd", None),
            ("etc/.whx", None),
            ("etc/x.wh.y", None),
            (".wh.a", remove("a")),
            ("etc/.wh.passwd", remove("etc/passwd")),
            ("etc/.wh..hidden", remove("etc/.hidden")),
            (".wh..wh..opq", empty("")),
            ("etc/.wh..wh..opq", empty("etc")),
            (".wh..wh.plnk", Some(Whiteout::Nothing)),
            (".wh..wh.plnk/12.34", Some(Whiteout::Nothing)),
            ("etc/.wh..wh.aufs", Some(Whiteout::Nothing)),
        ];
        for (path, expected) in table {
            assert_eq!(Whiteout::of(Path::new(path)).unwrap(), expected, "{path}");
        }
        for path in [".wh.", "etc/.wh..", "etc/.wh..."] {
            assert!(Whiteout::of(Path::new(path)).is_err(), "{path}");
        }
    }
}
