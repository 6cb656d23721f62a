//! A unit file as the user has it on disk: the file, its drop-ins, and for an instance its template.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{MachineError, PathContext as _};
use crate::name::UnitName;

/// Largest unit file accepted, in bytes; systemd's own limit for a line is 1 MiB.
const UNIT_FILE_MAX: u64 = 1 << 20;

/// A checked unit file: its name is a unit name, its text has at least one section and one setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitFile {
    name: UnitName,
    file_name: UnitName,
    text: String,
    drop_ins: Vec<DropIn>,
}

/// A drop-in file `NAME.d/*.conf` found beside a unit file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropIn {
    /// Folder name, such as `web.service.d`.
    pub folder: String,
    /// File name, such as `limits.conf`.
    pub file: String,
    /// The file's text.
    pub text: String,
}

impl UnitFile {
    /// Reads a unit file and the drop-ins beside it.
    ///
    /// Where `path` names an instance (`web@1.service`) that is no file, its template (`web@.service`)
    /// beside it is read.
    ///
    /// # Errors
    ///
    /// [`MachineError::Path`] where a file cannot be read, [`MachineError::UnitFile`] where it is no
    /// unit file: the error says what it holds instead.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, MachineError> {
        let path = path.as_ref();
        let file = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy();
        let name: UnitName = file.parse().map_err(|source| MachineError::UnitName {
            text: file.into_owned(),
            path: path.to_owned(),
            source,
        })?;
        let template_path = name
            .template()
            .map(|template| path.with_file_name(template.as_str()));
        let (read_from, file_name) = match template_path {
            Some(template_path) if !path.exists() && template_path.exists() => {
                let template = name.template().unwrap_or_else(|| name.clone());
                (template_path, template)
            }
            _ => (path.to_owned(), name.clone()),
        };
        let text = read_text(&read_from)?;
        check_text(&text).map_err(|found| MachineError::UnitFile {
            path: read_from.clone(),
            found,
        })?;
        let mut drop_ins = Vec::new();
        let folder_of = |unit: &UnitName| read_from.with_file_name(format!("{unit}.d"));
        let mut folders = vec![folder_of(&file_name)];
        if file_name != name {
            folders.push(folder_of(&name));
        }
        for folder in folders {
            read_drop_ins(&folder, &mut drop_ins)?;
        }
        Ok(Self {
            name,
            file_name,
            text,
            drop_ins,
        })
    }

    /// Makes a unit file from its name and text, with no drop-ins.
    ///
    /// # Errors
    ///
    /// [`MachineError::UnitFile`] where the text is no unit file.
    pub fn new(name: UnitName, text: impl Into<String>) -> Result<Self, MachineError> {
        let text = text.into();
        check_text(&text).map_err(|found| MachineError::UnitFile {
            path: name.as_str().into(),
            found,
        })?;
        Ok(Self {
            file_name: name.clone(),
            name,
            text,
            drop_ins: Vec::new(),
        })
    }

    /// The unit that is to be started.
    #[must_use]
    pub fn name(&self) -> &UnitName {
        &self.name
    }

    /// The name of the file on the unit path: the unit's own, or its template's.
    #[must_use]
    pub fn file_name(&self) -> &UnitName {
        &self.file_name
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The drop-ins, in the order of their names.
    #[must_use]
    pub fn drop_ins(&self) -> &[DropIn] {
        &self.drop_ins
    }

    /// The instance `instance` of this template, to be started in its place.
    ///
    /// # Errors
    ///
    /// [`MachineError::Template`] where this is no template or `instance` makes no unit name.
    pub fn with_instance(mut self, instance: &str) -> Result<Self, MachineError> {
        self.name = self
            .file_name
            .instance(instance)
            .ok_or_else(|| MachineError::Template {
                unit: self.name.clone(),
            })?;
        Ok(self)
    }
}

fn read_drop_ins(folder: &Path, into: &mut Vec<DropIn>) -> Result<(), MachineError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(());
        }
        Err(error) => return Err(error).at("read", folder),
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries {
        paths.push(entry.at("read", folder)?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|e| e == "conf"));
    paths.sort();
    for path in paths {
        let name = |p: &Path| {
            p.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        into.push(DropIn {
            folder: name(folder),
            file: name(&path),
            text: read_text(&path)?,
        });
    }
    Ok(())
}

fn read_text(path: &Path) -> Result<String, MachineError> {
    let unfit = |found: String| MachineError::UnitFile {
        path: path.to_owned(),
        found,
    };
    let meta = fs::metadata(path).at("read", path)?;
    if meta.is_dir() {
        return Err(unfit("a folder".into()));
    }
    if !meta.is_file() {
        return Err(unfit("no regular file".into()));
    }
    if meta.len() > UNIT_FILE_MAX {
        return Err(unfit(format!(
            "{} bytes, more than the {UNIT_FILE_MAX} a unit file may have",
            meta.len()
        )));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)
        .at("read", path)?
        .take(UNIT_FILE_MAX)
        .read_to_end(&mut bytes)
        .at("read", path)?;
    String::from_utf8(bytes).map_err(|error| {
        unfit(format!(
            "bytes that are no text (byte {} is not UTF-8)",
            error.utf8_error().valid_up_to()
        ))
    })
}

/// Checks that `text` has the form of systemd.syntax(7): a section before the first setting.
///
/// `Err` says what was found instead. Whether systemd knows the settings is for systemd to say.
fn check_text(text: &str) -> Result<(), String> {
    let mut section = false;
    let mut settings = 0_usize;
    let mut continued = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let was_continued = std::mem::replace(&mut continued, line.ends_with('\\'));
        if was_continued {
            continue;
        }
        let number = index + 1;
        if line.contains('\0') {
            return Err(format!("a NUL byte in line {number}"));
        }
        if line.starts_with('[') {
            if !line.ends_with(']') {
                return Err(format!("a section header without ']' in line {number}"));
            }
            section = true;
        } else if !section {
            return Err(format!(
                "text before the first [Section], in line {number}: {:?}",
                shortened(line)
            ));
        } else if line.contains('=') {
            settings += 1;
        } else {
            return Err(format!(
                "a line that is no NAME=VALUE, line {number}: {:?}",
                shortened(line)
            ));
        }
    }
    match (section, settings) {
        (false, _) if text.trim().is_empty() => Err("nothing: the file is empty".into()),
        (false, _) => Err("comments only".into()),
        (true, 0) => Err("sections without a setting".into()),
        _ => Ok(()),
    }
}

fn shortened(line: &str) -> String {
    line.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_unit_is_named() {
        let table = [
            ("[Service]\nExecStart=/bin/true\n", ""),
            (
                "# c\n\n[Service]\nExecStart=/bin/sh -c \\\n  [not a section\n",
                "",
            ),
            ("", "nothing: the file is empty"),
            ("# only\n", "comments only"),
            ("[Unit]\n", "sections without a setting"),
            (
                "hello\n",
                "text before the first [Section], in line 1: \"hello\"",
            ),
            ("[Service\nA=b\n", "a section header without ']' in line 1"),
            (
                "[Service]\nnonsense\n",
                "a line that is no NAME=VALUE, line 2: \"nonsense\"",
            ),
        ];
        for (text, found) in table {
            assert_eq!(
                check_text(text).err().unwrap_or_default(),
                found,
                "{text:?}"
            );
        }
    }

    #[test]
    fn drop_ins_and_templates_are_found_beside_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let unit = "[Service]\nExecStart=/bin/true\n";
        fs::write(dir.path().join("web@.service"), unit).unwrap();
        for (folder, file) in [
            ("web@.service.d", "b.conf"),
            ("web@.service.d", "a.conf"),
            ("web@1.service.d", "c.conf"),
        ] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join(file), "[Service]\nNice=1\n").unwrap();
        }
        fs::write(dir.path().join("web@.service.d/readme.txt"), "no").unwrap();
        let loaded = UnitFile::load(dir.path().join("web@1.service")).unwrap();
        assert_eq!(loaded.name().as_str(), "web@1.service");
        assert_eq!(loaded.file_name().as_str(), "web@.service");
        let files: Vec<_> = loaded
            .drop_ins()
            .iter()
            .map(|d| format!("{}/{}", d.folder, d.file))
            .collect();
        assert_eq!(
            files,
            [
                "web@.service.d/a.conf",
                "web@.service.d/b.conf",
                "web@1.service.d/c.conf"
            ]
        );
        assert!(matches!(
            UnitFile::load(dir.path().join("other.service")),
            Err(MachineError::Path { .. })
        ));
        assert!(matches!(
            UnitFile::load(dir.path().join("web")),
            Err(MachineError::UnitName { .. })
        ));
        fs::write(dir.path().join("bin.service"), [0xff, 0xfe]).unwrap();
        let error = UnitFile::load(dir.path().join("bin.service")).unwrap_err();
        assert!(error.to_string().contains("byte 0 is not UTF-8"), "{error}");
    }
}
