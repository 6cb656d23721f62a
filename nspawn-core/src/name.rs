//! Names that are parsed once and are never a plain string again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest machine name, in bytes. Source: machined(8), `HOST_NAME_MAX`.
const MACHINE_NAME_MAX: usize = 64;

/// Longest unit name, in bytes, its suffix included. Source: systemd.unit(5).
const UNIT_NAME_MAX: usize = 255;

/// What a string lacks to be a machine name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MachineNameError {
    /// Empty, or longer than 64 bytes.
    #[error("a machine name has 1 to 64 characters, this one has {0}")]
    Length(usize),
    /// A character outside `a-z A-Z 0-9 . -`.
    #[error("a machine name holds letters, digits, '-' and '.' only, not {0:?}")]
    Character(char),
    /// A label that is empty or has `-` at an edge.
    #[error("a machine name's parts between dots must not be empty, nor begin or end with '-'")]
    Label,
}

/// A machine name: 1 to 64 bytes of `a-z A-Z 0-9 . -`, as machined(8) accepts it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineName(String);

impl MachineName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The nearest valid name for `text`: other characters become `-`, the rest is cut at 64 bytes.
    ///
    /// `None` where nothing usable is left.
    #[must_use]
    pub fn derive(text: &str) -> Option<Self> {
        let mapped: String = text
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '.' {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        let labels: Vec<&str> = mapped
            .split('.')
            .map(|label| label.trim_matches('-'))
            .filter(|label| !label.is_empty())
            .collect();
        let mut name = labels.join(".");
        name.truncate(MACHINE_NAME_MAX);
        name.trim_end_matches(['.', '-']).parse().ok()
    }
}

impl FromStr for MachineName {
    type Err = MachineNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !(1..=MACHINE_NAME_MAX).contains(&text.len()) {
            return Err(MachineNameError::Length(text.chars().count()));
        }
        if let Some(bad) = text
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && !"-.".contains(*c))
        {
            return Err(MachineNameError::Character(bad));
        }
        let edged =
            |label: &str| label.is_empty() || label.starts_with('-') || label.ends_with('-');
        if text.split('.').any(edged) {
            return Err(MachineNameError::Label);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for MachineName {
    type Error = MachineNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MachineName> for String {
    fn from(name: MachineName) -> Self {
        name.0
    }
}

/// What a string lacks to be a unit name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitNameError {
    /// Empty, or longer than 255 bytes.
    #[error("a unit name has 1 to 255 characters, this one has {0}")]
    Length(usize),
    /// A character outside the set of systemd.unit(5).
    #[error("a unit name holds letters, digits and any of \":-_.\\@\" only, not {0:?}")]
    Character(char),
    /// No suffix, or one that is no unit type.
    #[error(
        "a unit name ends in its type (.service, .socket, .timer, .path, .target, .mount, ...)"
    )]
    Suffix,
    /// Nothing before the suffix or before the `@`.
    #[error("a unit name has something before its type and before '@'")]
    Prefix,
}

/// The suffix of a unit name: what kind of object it is. Source: systemd.unit(5).
const UNIT_TYPES: [&str; 10] = [
    "service",
    "socket",
    "timer",
    "path",
    "target",
    "mount",
    "automount",
    "swap",
    "slice",
    "scope",
];

/// A unit name such as `web.service`, `web@1.service` (an instance) or `web@.service` (a template).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(String);

impl UnitName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without its type: `web@1` of `web@1.service`.
    #[must_use]
    pub fn stem(&self) -> &str {
        self.0
            .rsplit_once('.')
            .map_or(self.0.as_str(), |(stem, _)| stem)
    }

    /// The type: `service` of `web.service`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.0.rsplit_once('.').map_or("", |(_, kind)| kind)
    }

    /// Whether this is a template, `web@.service`, which cannot be started itself.
    #[must_use]
    pub fn is_template(&self) -> bool {
        self.stem().ends_with('@')
    }

    /// The template that an instance is made from: `web@.service` of `web@1.service`.
    #[must_use]
    pub fn template(&self) -> Option<UnitName> {
        let (prefix, instance) = self.stem().split_once('@')?;
        (!instance.is_empty()).then(|| Self(format!("{prefix}@.{}", self.kind())))
    }

    /// The instance `instance` of this template.
    ///
    /// `None` where this is no template or the result is no unit name.
    #[must_use]
    pub fn instance(&self, instance: &str) -> Option<UnitName> {
        if !self.is_template() {
            return None;
        }
        format!("{}{instance}.{}", self.stem(), self.kind())
            .parse()
            .ok()
    }
}

impl FromStr for UnitName {
    type Err = UnitNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !(1..=UNIT_NAME_MAX).contains(&text.len()) {
            return Err(UnitNameError::Length(text.chars().count()));
        }
        if let Some(bad) = text
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && !":-_.\\@".contains(*c))
        {
            return Err(UnitNameError::Character(bad));
        }
        let Some((stem, kind)) = text.rsplit_once('.') else {
            return Err(UnitNameError::Suffix);
        };
        if !UNIT_TYPES.contains(&kind) {
            return Err(UnitNameError::Suffix);
        }
        if stem.is_empty() || stem.starts_with('@') {
            return Err(UnitNameError::Prefix);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for UnitName {
    type Error = UnitNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<UnitName> for String {
    fn from(name: UnitName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_names_are_those_of_machined() {
        let long = "a".repeat(65);
        let table = [
            ("web", None),
            ("web-1.example", None),
            ("", Some(MachineNameError::Length(0))),
            (long.as_str(), Some(MachineNameError::Length(65))),
            ("Fedora_30", Some(MachineNameError::Character('_'))),
            ("a/b", Some(MachineNameError::Character('/'))),
            ("é", Some(MachineNameError::Character('é'))),
            ("-a", Some(MachineNameError::Label)),
            ("a..b", Some(MachineNameError::Label)),
            ("a.", Some(MachineNameError::Label)),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<MachineName>().err(), error, "{text:?}");
        }
    }

    #[test]
    fn derived_names_are_valid() {
        let long = "x".repeat(80);
        let table = [
            ("web", Some("web")),
            ("web@1", Some("web-1")),
            ("my_app\\x2d", Some("my-app-x2d")),
            ("@@", None),
            ("..a..", Some("a")),
            (long.as_str(), Some(&long[..64])),
        ];
        for (text, name) in table {
            assert_eq!(
                MachineName::derive(text).as_ref().map(MachineName::as_str),
                name,
                "{text:?}"
            );
        }
    }

    #[test]
    fn unit_names_are_those_of_systemd() {
        let table = [
            ("web.service", None),
            ("web@1.service", None),
            ("web@.service", None),
            ("dev-sda\\x2d1.mount", None),
            ("web", Some(UnitNameError::Suffix)),
            ("web.conf", Some(UnitNameError::Suffix)),
            (".service", Some(UnitNameError::Prefix)),
            ("@1.service", Some(UnitNameError::Prefix)),
            ("a b.service", Some(UnitNameError::Character(' '))),
            ("", Some(UnitNameError::Length(0))),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<UnitName>().err(), error, "{text:?}");
        }
    }

    #[test]
    fn templates_and_instances() {
        let instance: UnitName = "web@1.service".parse().unwrap();
        let template = instance.template().unwrap();
        assert_eq!(template.as_str(), "web@.service");
        assert!(template.is_template());
        assert_eq!(template.instance("2").unwrap().as_str(), "web@2.service");
        assert_eq!(template.template(), None);
        assert_eq!("web.service".parse::<UnitName>().unwrap().template(), None);
    }
}
