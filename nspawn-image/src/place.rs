//! Results that take their place in one step: nobody ever sees half of one.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{ImageError, PathContext};
use crate::unpack::remove_tree;

/// A name beside `target` that no listing shows and no other process takes.
pub(crate) fn beside(target: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.{end}", std::process::id()));
    target.with_file_name(name)
}

/// Moves `from` to `to`. Without `replace`, what stands there stays and is [`ImageError::Exists`]; with it, what stood
/// there is gone afterwards, a folder with all that was in it.
pub(crate) fn put(from: &Path, to: &Path, replace: bool) -> Result<(), ImageError> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) if !replace => return Err(ImageError::Exists(to.to_owned())),
        // Some file systems know plain renames alone.
        Err(Errno::INVAL | Errno::NOSYS) if !replace => {
            if std::fs::symlink_metadata(to).is_ok() {
                return Err(ImageError::Exists(to.to_owned()));
            }
        }
        Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => {}
        Err(error) => return Err(ImageError::io("publish", to, error.into())),
    }
    let folder = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    if !folder(from) && !folder(to) {
        return std::fs::rename(from, to).at("publish", to);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
        Ok(()) => remove_tree(from).at("remove", from),
        Err(Errno::INVAL | Errno::NOSYS) => {
            // Not in one step, but never half of it.
            let old = beside(to, "old");
            match std::fs::rename(to, &old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::io("replace", to, error));
                }
                _ => {}
            }
            std::fs::rename(from, to).at("publish", to)?;
            remove_tree(&old).at("remove", &old)
        }
        Err(error) => Err(ImageError::io("replace", to, error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_result_replaces_only_where_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        for (index, is_folder) in [(0, false), (1, true), (2, false), (3, true), (4, true)] {
            let from = beside(&to, "new");
            let content = if is_folder {
                from.join("x")
            } else {
                from.clone()
            };
            if is_folder {
                fs::create_dir(&from).unwrap();
            }
            fs::write(content, format!("{index}")).unwrap();
            if index > 0 {
                let refused = put(&from, &to, false).unwrap_err();
                assert!(matches!(refused, ImageError::Exists(_)), "{refused}");
            }
            put(&from, &to, index > 0).unwrap();
            let content = if is_folder { to.join("x") } else { to.clone() };
            assert_eq!(fs::read_to_string(content).unwrap(), format!("{index}"));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
}
